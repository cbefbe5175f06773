"""From scores to probabilities and flags: Platt scaling, calibration error, operating thresholds.

Each finding has its own slope and intercept, fitted on the validation split; a finding with too few
cases keeps the plain sigmoid and says so. Class frequencies elsewhere differ from those of the
validation split, so a probability holds for patients like those it was fitted on.

The fit is in `platt`, how well it holds in `reliability`; their functions are offered here as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chexradinet.config import EvaluationConfig
from chexradinet.errors import MismatchError
from chexradinet.evaluation.cases import Array, FloatArray, check_columns
from chexradinet.evaluation.platt import PlattScaling, fit_platt, sigmoid
from chexradinet.evaluation.reliability import (
    calibration_metrics,
    expected_calibration_error,
    operating_threshold,
    performance_at_threshold,
    reliability_curve,
)

__all__ = [
    "NOT_CALIBRATED",
    "PLATT",
    "Calibration",
    "FindingCalibration",
    "PlattScaling",
    "apply_calibration",
    "calibration_metrics",
    "expected_calibration_error",
    "fit_calibration",
    "fit_platt",
    "operating_threshold",
    "performance_at_threshold",
    "reliability_curve",
    "sigmoid",
]

PLATT = "platt"
"""Status of a calibrated finding."""
NOT_CALIBRATED = "not_calibrated"
"""Status of a finding whose probability is the plain sigmoid."""


@dataclass(frozen=True, kw_only=True)
class FindingCalibration:
    """How one finding's logits become probabilities and flags."""

    status: str
    """`platt` or `not_calibrated`."""
    slope: float = 1.0
    """Factor of the logit; 1 where not calibrated."""
    intercept: float = 0.0
    """Offset after the factor; 0 where not calibrated."""
    positives: int
    """Positive cases it was fitted on."""
    negatives: int
    """Negative cases it was fitted on."""
    threshold: float | None = None
    """Flag where the probability is at least this; None where not calibrated: never flagged."""
    sensitivity: float | None = None
    """Fraction of positives flagged on the split it was fitted on."""
    specificity: float | None = None
    """Fraction of negatives not flagged on the split it was fitted on."""
    reason: str = ""
    """Why the finding is not calibrated."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of all findings, as it travels in the bundle."""

    findings: Mapping[str, FindingCalibration]
    """Finding to its calibration."""
    split: str
    """Where it was fitted."""
    target_sensitivity: float
    """What the operating thresholds reach on that split."""
    num_images: int
    """Images of that split."""
    method: str = "Platt scaling a finding, smoothed targets, slope above 0"
    """How the probabilities are made."""
    rule: str = "highest threshold that reaches the target sensitivity; flag at or above it"
    """How the operating thresholds are chosen."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Calibration":
        """Return the calibration that `as_dict` wrote."""
        findings = {
            name: FindingCalibration(**values) for name, values in record["findings"].items()
        }
        return cls(**{**record, "findings": findings})

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Finding to operating threshold."""
        return {name: entry.threshold for name, entry in self.findings.items()}


def fit_calibration(
    labels: Array,
    logits: Array,
    findings: Sequence[str],
    config: EvaluationConfig | None = None,
    split: str = "validation",
) -> Calibration:
    """Calibrate every finding and choose its operating threshold.

    Args:
        labels: 1, 0 or NaN, shape (N, F).
        logits: Shape (N, F).
        findings: Names of the F columns.
        config: `min_positives` and `sensitivity` count here; None for the defaults.
        split: Name of the split the cases come from, for the record.

    Raises:
        EvaluationError: shapes do not belong together, or a logit is not finite.
    """
    config = config or EvaluationConfig()
    check_columns(labels, logits, len(findings))
    fitted = {
        name: _fit_finding(labels[:, i], logits[:, i], config) for i, name in enumerate(findings)
    }
    return Calibration(
        findings=fitted,
        split=split,
        target_sensitivity=config.sensitivity,
        num_images=len(labels),
    )


def _fit_finding(labels: Array, logits: Array, config: EvaluationConfig) -> FindingCalibration:
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    scaling = fit_platt(labels, logits, config.min_positives)
    if scaling is None:
        few = min(positives, negatives) < config.min_positives
        reason = f"fewer than {config.min_positives} cases of a class" if few else "constant logits"
        return FindingCalibration(
            status=NOT_CALIBRATED, positives=positives, negatives=negatives, reason=reason
        )
    point = operating_threshold(labels, scaling.apply(logits), config.sensitivity) or {}
    return FindingCalibration(
        status=PLATT,
        slope=scaling.slope,
        intercept=scaling.intercept,
        positives=positives,
        negatives=negatives,
        threshold=point.get("threshold"),
        sensitivity=point.get("sensitivity"),
        specificity=point.get("specificity"),
    )


def apply_calibration(
    calibration: Mapping[str, Any], findings: Sequence[str], logits: Array
) -> FloatArray:
    """Return calibrated probabilities; the plain sigmoid for findings that are not calibrated.

    Args:
        calibration: Of `Calibration.as_dict`.
        findings: Names of the F columns, in any order.
        logits: Shape (N, F).

    Returns:
        Shape (N, F), in [0, 1].

    Raises:
        MismatchError: the calibration does not hold one of the findings.
    """
    known = calibration["findings"]
    missing = [name for name in findings if name not in known]
    if missing:
        raise MismatchError(
            f"the calibration holds {', '.join(known)} but not {', '.join(missing)}; "
            "use the calibration of the model that gave the logits"
        )
    slopes = np.array([known[name]["slope"] for name in findings])
    intercepts = np.array([known[name]["intercept"] for name in findings])
    return sigmoid(np.asarray(logits, dtype=np.float64) * slopes + intercepts)
