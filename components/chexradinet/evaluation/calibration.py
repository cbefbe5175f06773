"""From scores to probabilities and flags: Platt scaling, calibration error, operating thresholds.

Each finding has its own slope and intercept, fitted on the validation split; a finding with too few
cases keeps the plain sigmoid and says so. Class frequencies elsewhere differ from those of the
validation split, so a probability holds for patients like those it was fitted on.

Labels, scores and findings are as in `classification`; probabilities are in [0, 1].

Source: Platt 1999, "Probabilistic outputs for support vector machines", with its smoothed targets
(scikit-learn's logistic regression takes neither fractional targets nor a lowest slope); Naeini et
al. 2015, AAAI 29 (expected calibration error), with bins of equal mass: bins of equal width leave
most of a rare finding's cases in the first one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chexradinet.config import EvaluationConfig, ThresholdRule
from chexradinet.errors import ConfigError, MismatchError
from chexradinet.evaluation.classification import (
    Array,
    FloatArray,
    check_columns,
    known_cases,
    mean_or_none,
)
from chexradinet.records import Split

PLATT = "platt"
"""Status of a calibrated finding."""
NOT_CALIBRATED = "not_calibrated"
"""Status of a finding whose probability is the plain sigmoid."""
MIN_SLOPE = 1e-2
"""Smallest slope, in log-odds per standard deviation of the logits: a calibration may flatten
scores but never reverse their order."""
_NEWTON_STEPS = 100
_FLAT_STEP = 1e-10
_MIN_LINE_CASES = 10


@dataclass(frozen=True, kw_only=True)
class FindingCalibration:
    """How one finding's logits become probabilities and flags."""

    status: str
    """`platt` or `not_calibrated`."""
    slope: float = 1.0
    """Factor of the logit; 1 if not calibrated."""
    intercept: float = 0.0
    """Offset after the factor; 0 if not calibrated."""
    positives: int
    """Positive cases it was fitted on."""
    negatives: int
    """Negative cases it was fitted on."""
    threshold: float | None = None
    """Flag if the probability is at least this; None if not calibrated: never flagged."""
    sensitivity: float | None = None
    """Fraction of positives flagged on the split it was fitted on."""
    specificity: float | None = None
    """Fraction of negatives not flagged on the split it was fitted on."""
    reason: str = ""
    """Why the finding is not calibrated."""
    rule: str = ""
    """What the threshold holds on the split it was fitted on, as `sensitivity:0.9`."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of all findings, as it travels in the bundle."""

    findings: Mapping[str, FindingCalibration]
    """Finding to its calibration."""
    split: str
    """Split it was fitted on."""
    target_sensitivity: float | None
    """Sensitivity that the operating thresholds reach on that split; None for another rule."""
    num_images: int
    """Images of that split."""
    method: str = "Platt scaling a finding, smoothed targets, slope above 0"
    """How the probabilities are made."""
    rule: str = "highest threshold that reaches the target sensitivity; flag at or above it"
    """How the operating thresholds are chosen."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Finding to operating threshold."""
        return {name: entry.threshold for name, entry in self.findings.items()}


def fit_calibration(
    labels: Array,
    logits: Array,
    findings: Sequence[str],
    config: EvaluationConfig | None = None,
) -> Calibration:
    """Calibrate every finding on validation cases and choose its operating threshold.

    Args:
        labels: Shape (N, F).
        logits: Shape (N, F).
        findings: Names of the F columns.
        config: `min_positives` and `target_sensitivity` count here; None for the defaults.

    Raises:
        ConfigError: a target is for a finding that is none of these.
    """
    config = config or EvaluationConfig()
    check_columns(labels, logits, len(findings))
    unknown = [name for name in config.target_findings if name not in findings]
    if unknown:
        raise ConfigError(
            f"target_sensitivity names {', '.join(unknown)}; the findings of this data set are "
            f"{', '.join(findings)}"
        )
    rule, target = config.threshold_target("")
    by_sensitivity = rule == ThresholdRule.SENSITIVITY
    return Calibration(
        findings={
            name: _fit_finding(name, labels[:, i], logits[:, i], config)
            for i, name in enumerate(findings)
        },
        split=Split.VALIDATION.value,
        target_sensitivity=target if by_sensitivity else None,
        num_images=len(labels),
        rule=Calibration.rule
        if by_sensitivity and not config.target_findings
        else f"threshold that holds {config.target_sensitivity}; flag at or above it",
    )


def _fit_finding(
    name: str, labels: Array, logits: Array, config: EvaluationConfig
) -> FindingCalibration:
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    scaling = fit_platt(labels, logits, config.min_positives)
    if scaling is None:
        few = min(positives, negatives) < config.min_positives
        reason = f"fewer than {config.min_positives} cases of a class" if few else "constant logits"
        return FindingCalibration(
            status=NOT_CALIBRATED, positives=positives, negatives=negatives, reason=reason
        )
    rule, target = config.threshold_target(name)
    point = operating_threshold(labels, scaling.apply(logits), target, rule) or {}
    return FindingCalibration(
        status=PLATT,
        slope=scaling.slope,
        intercept=scaling.intercept,
        positives=positives,
        negatives=negatives,
        threshold=point.get("threshold"),
        sensitivity=point.get("sensitivity"),
        specificity=point.get("specificity"),
        rule=f"{rule.value}:{target:g}",
    )


def apply_calibration(
    calibration: Mapping[str, Any], findings: Sequence[str], logits: Array
) -> FloatArray:
    """Return calibrated probabilities; the plain sigmoid for findings that are not calibrated.

    Args:
        calibration: Record that `Calibration.as_dict` gave.
        findings: Names of the F columns, in any order.
        logits: Shape (N, F).

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


def sigmoid(logits: Array) -> FloatArray:
    """Return `1 / (1 + exp(-logits))` without overflow."""
    values = np.asarray(logits, dtype=np.float64)
    return 0.5 * (1.0 + np.tanh(0.5 * values))


@dataclass(frozen=True, slots=True)
class PlattScaling:
    """`probability = sigmoid(slope * logit + intercept)`."""

    slope: float
    intercept: float

    def apply(self, logits: Array) -> FloatArray:
        """Return probabilities, of the shape of the logits."""
        return sigmoid(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)


def fit_platt(labels: Array, logits: Array, min_positives: int = 10) -> PlattScaling | None:
    """Fit slope and intercept by maximum likelihood against Platt's smoothed targets.

    The targets `(P + 1) / (P + 2)` and `1 / (Q + 2)` for P positive and Q negative cases keep the
    fit finite if the classes separate. The slope is at least `MIN_SLOPE`.

    Returns:
        None if a class has fewer than `min_positives` cases, or all logits are equal.
    """
    truth, values = known_cases(labels, logits)
    num_positives = int(truth.sum())
    num_negatives = len(truth) - num_positives
    if min(num_positives, num_negatives) < max(min_positives, 1) or np.ptp(values) == 0:
        return None
    targets = np.where(truth, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
    # Standardised logits make the two parameters nearly independent, so Newton's steps are sound.
    center, scale = float(values.mean()), float(values.std())
    design = np.stack([(values - center) / scale, np.ones_like(values)], axis=1)
    weights = _maximum_likelihood(design, targets)
    if weights[0] < MIN_SLOPE:
        offset = MIN_SLOPE * design[:, 0]
        weights = np.r_[MIN_SLOPE, _maximum_likelihood(design[:, 1:], targets, offset)]
    slope = float(weights[0]) / scale
    return PlattScaling(slope, float(weights[1]) - slope * center)


def _maximum_likelihood(
    design: FloatArray, targets: FloatArray, offset: FloatArray | float = 0.0
) -> FloatArray:
    """Minimise the cross-entropy by Newton's method, halving steps that do not help."""

    def loss(weights: FloatArray) -> float:
        margins = design @ weights + offset
        return float((np.logaddexp(0.0, margins) - targets * margins).mean())

    weights = np.zeros(design.shape[1])
    current = loss(weights)
    for _ in range(_NEWTON_STEPS):
        probabilities = sigmoid(design @ weights + offset)
        gradient = design.T @ (probabilities - targets)
        curvature = (design * (probabilities * (1 - probabilities))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-12 * np.eye(len(weights)), gradient)
        while loss(weights - step) > current and np.abs(step).max() > _FLAT_STEP:
            step = step / 2
        weights = weights - step
        current = loss(weights)
        if np.abs(step).max() <= _FLAT_STEP:
            break
    return weights


def reliability_curve(
    labels: Array, probabilities: Array, bins: int = 15
) -> dict[str, list[float]]:
    """Return predicted probability against observed frequency in bins of equal mass.

    Equal probabilities share a bin, that of their middle rank, whatever their order; scikit-learn's
    `calibration_curve` splits them by order.

    Returns:
        `predicted`, `observed` and `count`, of equal length, rising in `predicted`; empty without
        a known case.
    """
    truth, values = known_cases(labels, probabilities)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    bin_of = np.minimum((middle / max(1, len(truth)) * bins).astype(int), bins - 1)[inverse]
    count = np.bincount(bin_of, minlength=bins).astype(np.float64)
    held = count > 0
    return {
        "predicted": (np.bincount(bin_of, values, bins)[held] / count[held]).tolist(),
        "observed": (np.bincount(bin_of, truth, bins)[held] / count[held]).tolist(),
        "count": count[held].tolist(),
    }


def expected_calibration_error(labels: Array, probabilities: Array, bins: int = 15) -> float | None:
    """Return the mean distance between predicted and observed frequency, weighted by cases.

    Returns:
        In [0, 1]; None without a known case.
    """
    curve = reliability_curve(labels, probabilities, bins)
    predicted, observed, count = (np.array(column) for column in curve.values())
    if not len(count):
        return None
    return float((np.abs(predicted - observed) * count).sum() / count.sum())


def calibration_line(labels: Array, probabilities: Array) -> dict[str, Any] | None:
    """Return how one finding's log-odds must be stretched and shifted to be right here.

    Returns:
        `slope` (below 1: too extreme) and `intercept` of the logistic regression of the labels on
        the log-odds, `in_the_large` (its intercept at slope 1; below 0: too high), `positives` and
        `negatives`; None with fewer than ten cases of a class, or if the classes separate, which
        leaves the slope without an end.

    Source: Van Calster et al. 2019, BMC Medicine 17.
    """
    truth, values = known_cases(labels, probabilities)
    num_positives = int(truth.sum())
    if min(num_positives, len(truth) - num_positives) < _MIN_LINE_CASES:
        return None
    if values[truth].min() >= values[~truth].max() or values[truth].max() <= values[~truth].min():
        return None
    inside = np.clip(values, 1e-12, 1 - 1e-12)
    design = np.stack([np.log(inside / (1 - inside)), np.ones_like(inside)], axis=1)
    targets = truth.astype(np.float64)
    slope, intercept = _maximum_likelihood(design, targets)
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "in_the_large": float(_maximum_likelihood(design[:, 1:], targets, design[:, 0])[0]),
        "positives": num_positives,
        "negatives": len(truth) - num_positives,
    }


def calibration_metrics(
    labels: Array, probabilities: Array, findings: Sequence[str]
) -> dict[str, Any]:
    """Return `ece` (mean over findings), `ece_by_finding`, `reliability` and `calibration_line`.

    All but the first are by finding: error, curve, and what `calibration_line` returns.
    """
    columns = [(name, labels[:, i], probabilities[:, i]) for i, name in enumerate(findings)]
    errors = {name: expected_calibration_error(truth, own) for name, truth, own in columns}
    return {
        "ece": mean_or_none(list(errors.values())),
        "ece_by_finding": errors,
        "reliability": {name: reliability_curve(truth, own) for name, truth, own in columns},
        "calibration_line": {name: calibration_line(truth, own) for name, truth, own in columns},
    }


def operating_threshold(
    labels: Array,
    probabilities: Array,
    target: float,
    rule: ThresholdRule = ThresholdRule.SENSITIVITY,
) -> dict[str, float | None] | None:
    """Return the threshold that holds a target; a case at it is flagged.

    Args:
        labels: Shape (N,).
        probabilities: Shape (N,), finite; for a flag rate those of unknown labels count too.
        target: Fraction in (0, 1], of what the rule says.
        rule: What the threshold holds.

    Returns:
        `threshold` and the `sensitivity` and `specificity` it has here, both at least 0; None if a
        class is missing.
    """
    truth, values = known_cases(labels, probabilities)
    if truth.all() or not truth.any():
        return None
    if rule == ThresholdRule.SENSITIVITY:
        positives = np.sort(values[truth])[::-1]
        needed = int(np.ceil(target * len(positives) - 1e-9))
        threshold = float(positives[max(needed, 1) - 1])
    elif rule == ThresholdRule.SPECIFICITY:
        threshold = _lowest_threshold(values, values[~truth], 1 - target)
    else:
        everything = np.asarray(probabilities, dtype=np.float64)
        threshold = _lowest_threshold(everything, everything, target)
    return {"threshold": threshold, **performance_at_threshold(labels, probabilities, threshold)}


def _lowest_threshold(candidates: FloatArray, pool: FloatArray, most: float) -> float:
    """Return the lowest candidate at or above which lies at most this part of the pool.

    Just above the highest one if ties leave none.
    """
    levels = np.unique(candidates)
    flagged = 1 - np.searchsorted(np.sort(pool), levels, side="left") / len(pool)
    fitting = levels[flagged <= most + 1e-9]
    return float(fitting[0] if len(fitting) else np.nextafter(levels[-1], np.inf))


def performance_at_threshold(
    labels: Array, probabilities: Array, threshold: float | None
) -> dict[str, float | None]:
    """Return `sensitivity` and `specificity` of a threshold chosen elsewhere.

    Each is None if the threshold is, or if the class it needs is missing.
    """
    truth, values = known_cases(labels, probabilities)
    if threshold is None:
        return {"sensitivity": None, "specificity": None}
    flags = values >= threshold
    return {
        "sensitivity": float(flags[truth].mean()) if truth.any() else None,
        "specificity": float((~flags[~truth]).mean()) if not truth.all() else None,
    }
