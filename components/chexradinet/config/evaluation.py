"""From a heatmap to a region and its features, and how models are evaluated."""

from enum import StrEnum
from typing import Self

from pydantic import Field, field_validator, model_validator

from chexradinet.config.base import Settings, internal, require, stored_as


class RegionConfig(Settings):
    """How a heatmap becomes a region."""

    region_threshold: float = stored_as("threshold", 0.6, gt=0, lt=1)
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


class ThresholdRule(StrEnum):
    """What an operating threshold holds on the validation split."""

    SENSITIVITY = "sensitivity"
    """The highest threshold that flags at least this part of the positives."""
    SPECIFICITY = "specificity"
    """The lowest threshold that leaves at least this part of the negatives without a flag."""
    FLAG_RATE = "flag_rate"
    """The lowest threshold that flags at most this part of all X-rays."""


_TARGETS = (
    "a number in (0, 1), or specificity:0.95 or flag_rate:0.1, then others by finding if wanted, "
    "such as 0.9,Nodule=0.8,Mass=flag_rate:0.1"
)


class EvaluationConfig(Settings):
    """How models are evaluated."""

    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the patients for the 95% intervals."""
    target_sensitivity: str = Field(default="0.9", json_schema_extra={"needed": _TARGETS})
    """Target of the operating thresholds on validation, then others by finding: 0.9,Nodule=0.8."""
    min_positives: int = internal(10, ge=2)
    """Fewest positive validation cases a finding needs to be calibrated."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, augmentation and bootstrap."""

    @field_validator("target_sensitivity", mode="before")
    @classmethod
    def _targets_can_be_read(cls, value: object) -> str:
        try:
            _threshold_targets(str(value))
        except ValueError:
            require(False, "target_sensitivity", value, _TARGETS)
        return str(value)

    def threshold_target(self, finding: str) -> tuple[ThresholdRule, float]:
        """Return the rule of a finding's operating threshold, and its target in (0, 1)."""
        targets = _threshold_targets(self.target_sensitivity)
        return targets.get(finding, targets[""])

    @property
    def target_findings(self) -> tuple[str, ...]:
        """Findings with a target of their own."""
        return tuple(name for name in _threshold_targets(self.target_sensitivity) if name)


class PublishConfig(Settings):
    """When a model is published, and what it may lose against the champion."""

    replace_incomparable: bool = False
    """Publish also if the champion knows other findings."""
    allow_missing_thresholds: bool = False
    """Publish also a model that has no operating threshold for any finding."""
    min_auroc_gain: float = Field(default=0.0, ge=-1, lt=1)
    """Rise of the mean AUROC on the test patients that a model must exceed to be champion."""
    max_finding_loss: float = Field(default=0.05, ge=0, le=1)
    """Most that the AUROC of one finding may fall below the champion's on the test patients."""
    max_localization_loss: float = Field(default=0.05, ge=0, le=1)
    """Most that the share of peaks in a true box may fall below the champion's."""
    max_calibration_error: float = Field(default=0.10, ge=0, le=1)
    """Calibration error on the test patients that a model may have if the champion's is less."""
    model_name: str = Field(default="chexradinet", min_length=1)
    """Name of the model in the Model Registry, if there is one (MODEL_REGISTRY_URL)."""
    min_cases: int = internal(10, ge=2)
    """Fewest positive test cases, or boxed cases, on which a loss is judged."""


def _threshold_targets(text: str) -> dict[str, tuple[ThresholdRule, float]]:
    """Return the targets by finding, that of all others under the empty name."""
    found = {}
    for part in text.split(","):
        name, _, target = part.rpartition("=")
        rule, _, value = target.strip().rpartition(":")
        number = float(value)
        if not 0 < number < 1 or name.strip() in found:
            raise ValueError(part)
        found[name.strip()] = (ThresholdRule(rule or ThresholdRule.SENSITIVITY), number)
    if "" not in found:
        raise ValueError(text)
    return found
