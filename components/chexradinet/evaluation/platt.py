"""Platt scaling: two numbers that turn a finding's logits into probabilities.

Source: Platt 1999, "Probabilistic outputs for support vector machines", with its smoothed targets.
"""

from dataclasses import dataclass

import numpy as np

from chexradinet.evaluation.cases import Array, FloatArray, known_cases

MIN_SLOPE = 1e-2
"""Smallest slope, in log-odds a standard deviation of the logits: a calibration may flatten scores
but never turn their order round."""
_NEWTON_STEPS = 100
_FLAT_STEP = 1e-10


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
        """Return probabilities in [0, 1], of the shape of the logits."""
        return sigmoid(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)


def fit_platt(labels: Array, logits: Array, min_positives: int = 10) -> PlattScaling | None:
    """Fit slope and intercept by maximum likelihood against Platt's smoothed targets.

    The targets `(P + 1) / (P + 2)` and `1 / (Q + 2)` for P positive and Q negative cases keep the
    fit finite where the classes separate. The slope is at least `MIN_SLOPE`.

    Args:
        labels: 1, 0 or NaN (left out), shape (N,).
        logits: Shape (N,).
        min_positives: Fewest cases of either class.

    Returns:
        None where a class has too few cases, or all logits are equal.

    Raises:
        EvaluationError: shapes differ, or a logit is not finite.
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
