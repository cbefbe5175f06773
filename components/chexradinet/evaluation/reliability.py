"""Do probabilities hold what they promise, and where to draw the line between flag and no flag.

Source: Naeini et al. 2015, AAAI 29 (expected calibration error), with bins of equal mass: bins of
equal width leave most of a rare finding's cases in the first one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chexradinet.evaluation.cases import Array, BoolArray, FloatArray, known_cases, mean_or_none


def _bins(
    truth: BoolArray, probabilities: FloatArray, bins: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean probability, observed frequency and count of each bin that holds cases."""
    _, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    # Equal probabilities share a bin, that of their middle rank, whatever their order.
    middle = np.cumsum(counts) - counts / 2
    bin_of = np.minimum((middle / len(truth) * bins).astype(int), bins - 1)[inverse]
    count = np.bincount(bin_of, minlength=bins).astype(np.float64)
    held = count > 0
    predicted = np.bincount(bin_of, probabilities, bins)[held] / count[held]
    observed = np.bincount(bin_of, truth, bins)[held] / count[held]
    return predicted, observed, count[held]


def expected_calibration_error(labels: Array, probabilities: Array, bins: int = 15) -> float | None:
    """Return the mean distance between promised and observed frequency, weighted by cases.

    Args:
        labels: 1, 0 or NaN (left out), shape (N,).
        probabilities: In [0, 1], shape (N,).
        bins: Bins of equal mass; cases with equal probability stay together.

    Returns:
        In [0, 1]; None without a known case.

    Raises:
        EvaluationError: shapes differ, or a probability is not finite.
    """
    truth, values = known_cases(labels, probabilities)
    if not len(truth):
        return None
    predicted, observed, count = _bins(truth, values, bins)
    return float((np.abs(predicted - observed) * count).sum() / count.sum())


def reliability_curve(
    labels: Array, probabilities: Array, bins: int = 15
) -> dict[str, list[float]]:
    """Return what `expected_calibration_error` averages, bin by bin.

    Returns:
        `predicted`, `observed` and `count`, of equal length, rising in `predicted`; empty without
        a known case.
    """
    truth, values = known_cases(labels, probabilities)
    if not len(truth):
        return {"predicted": [], "observed": [], "count": []}
    columns = zip(("predicted", "observed", "count"), _bins(truth, values, bins), strict=True)
    return {name: [float(value) for value in column] for name, column in columns}


def calibration_metrics(
    labels: Array, probabilities: Array, findings: Sequence[str], bins: int = 15
) -> dict[str, Any]:
    """Return `ece` (mean over findings), `ece_by_finding` and `reliability` (finding to curve).

    Args:
        labels: 1, 0 or NaN, shape (N, F).
        probabilities: In [0, 1], shape (N, F).
        findings: Names of the F columns.
        bins: Of equal mass.
    """
    columns = [(name, labels[:, i], probabilities[:, i]) for i, name in enumerate(findings)]
    errors = {name: expected_calibration_error(truth, own, bins) for name, truth, own in columns}
    return {
        "ece": mean_or_none(list(errors.values())),
        "ece_by_finding": errors,
        "reliability": {name: reliability_curve(truth, own, bins) for name, truth, own in columns},
    }


def operating_threshold(
    labels: Array, probabilities: Array, sensitivity: float
) -> dict[str, float] | None:
    """Return the highest threshold whose flags reach a sensitivity; a case at it is flagged.

    Args:
        labels: 1, 0 or NaN (left out), shape (N,).
        probabilities: Shape (N,).
        sensitivity: Fraction of positives to flag, in (0, 1].

    Returns:
        `threshold` and the `sensitivity` and `specificity` it has here, both at least 0; None where
        a class is missing.

    Raises:
        EvaluationError: shapes differ, or a probability is not finite.
    """
    truth, values = known_cases(labels, probabilities)
    if truth.all() or not truth.any():
        return None
    positives = np.sort(values[truth])[::-1]
    needed = int(np.ceil(sensitivity * len(positives) - 1e-9))
    threshold = float(positives[max(needed, 1) - 1])
    return {"threshold": threshold, **_rates(truth, values >= threshold)}


def performance_at_threshold(
    labels: Array, probabilities: Array, threshold: float | None
) -> dict[str, float | None]:
    """Return `sensitivity` and `specificity` of a threshold chosen elsewhere.

    Each is None where the threshold is, or where the class it needs is missing.
    """
    truth, values = known_cases(labels, probabilities)
    if threshold is None:
        return {"sensitivity": None, "specificity": None}
    flags = values >= threshold
    return {
        "sensitivity": float(flags[truth].mean()) if truth.any() else None,
        "specificity": float((~flags[~truth]).mean()) if not truth.all() else None,
    }


def _rates(truth: BoolArray, flags: BoolArray) -> dict[str, float]:
    return {
        "sensitivity": float(flags[truth].mean()),
        "specificity": float((~flags[~truth]).mean()),
    }
