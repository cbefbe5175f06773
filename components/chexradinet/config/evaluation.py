"""From a heatmap to a region and its features, and how models are evaluated."""

from typing import Self

from pydantic import AliasChoices, Field, model_validator

from chexradinet.config.base import Settings, internal, require


class RegionConfig(Settings):
    """How a heatmap becomes a region."""

    region_threshold: float = Field(
        default=0.6,
        gt=0,
        lt=1,
        validation_alias=AliasChoices("region_threshold", "threshold"),
        serialization_alias="threshold",
    )
    """Fraction of a map's maximum that its region reaches."""
    blur_px: int = internal(5, ge=1)
    """Side of the Gaussian kernel applied after upsampling, odd, 1 for none."""
    min_side_px: int = internal(3, ge=2)
    """Shortest side of a region, in model pixels."""
    min_area_px: int = internal(9, ge=1)
    """Fewest pixels of a component."""
    max_area_fraction: float = internal(0.85, gt=0, le=1)
    """Largest part of the image that a box may cover."""
    border_px: int = internal(1, ge=1)
    """Outer pixels a box leaves free: radiomics refuses a mask without background."""

    @model_validator(mode="after")
    def _blur_is_odd(self) -> Self:
        require(self.blur_px % 2 == 1, "blur_px", self.blur_px, "odd and at least 1")
        return self


class RadiomicsConfig(Settings):
    """Settings of the 102 features."""

    bin_width: float = Field(default=8.0, gt=0, le=128)
    """Width of a radiomics grey-level bin on the 8-bit range."""
    spacing_mm: float = internal(1.0, gt=0)
    """Nominal distance between model pixels; fixed, so that X-rays of any source compare."""


class EvaluationConfig(Settings):
    """How models are evaluated."""

    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the patients for the 95% intervals."""
    target_sensitivity: float = Field(default=0.90, gt=0, lt=1)
    """Sensitivity that the operating thresholds reach on the validation split."""
    min_positives: int = internal(10, ge=2)
    """Fewest positive validation cases a finding needs to be calibrated."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, augmentation and bootstrap."""
