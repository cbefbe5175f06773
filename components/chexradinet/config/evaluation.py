"""From a heatmap to a region and its features, and how a model is judged."""

from dataclasses import dataclass

from chexradinet.config.checks import require


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """How a heatmap becomes a region."""

    threshold: float = 0.6
    """Fraction of the rectified map's maximum a pixel must reach, in (0, 1)."""
    blur_px: int = 5
    """Side of the Gaussian kernel applied after upsampling, odd, 1 for none."""
    min_side_px: int = 3
    """Shortest side of a region, in model pixels."""
    min_area_px: int = 9
    """Fewest pixels of a component."""
    max_area_fraction: float = 0.85
    """Largest part of the image a box may cover, in (0, 1]."""
    border_px: int = 1
    """Outer pixels a box leaves free: radiomics refuses a mask without background."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(0 < self.threshold < 1, "threshold", self.threshold, "in (0, 1)")
        odd = self.blur_px >= 1 and self.blur_px % 2 == 1
        require(odd, "blur_px", self.blur_px, "odd and at least 1")
        require(self.min_side_px >= 2, "min_side_px", self.min_side_px, "at least 2")
        require(self.min_area_px >= 1, "min_area_px", self.min_area_px, "at least 1")
        fraction = self.max_area_fraction
        require(0 < fraction <= 1, "max_area_fraction", fraction, "in (0, 1]")
        require(self.border_px >= 1, "border_px", self.border_px, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RadiomicsConfig:
    """Settings of the 102 features."""

    bin_width: float = 8.0
    """Width of a grey-level bin on the 8-bit range."""
    spacing_mm: float = 1.0
    """Nominal distance between model pixels; fixed, so that X-rays of any source compare."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(0 < self.bin_width <= 128, "bin_width", self.bin_width, "in (0, 128]")
        require(self.spacing_mm > 0, "spacing_mm", self.spacing_mm, "above 0")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is judged."""

    bootstrap_samples: int = 1000
    """Resamples of patients for the 95% intervals."""
    sensitivity: float = 0.90
    """Operating thresholds reach at least this sensitivity on the validation split, in (0, 1)."""
    min_positives: int = 10
    """Fewest positive validation cases a finding needs to be calibrated."""
    seed: int = 0
    """Of the bootstrap and of the random-map control."""

    def __post_init__(self) -> None:
        """Check every number."""
        samples = self.bootstrap_samples
        require(samples >= 100, "bootstrap_samples", samples, "at least 100")
        require(0 < self.sensitivity < 1, "sensitivity", self.sensitivity, "in (0, 1)")
        require(self.min_positives >= 2, "min_positives", self.min_positives, "at least 2")
