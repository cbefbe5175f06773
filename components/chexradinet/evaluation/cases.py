"""What every measurement checks first: labels and scores of the same cases, scores finite."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.errors import EvaluationError

Array = npt.NDArray[Any]
"""Numbers of any type."""
FloatArray = npt.NDArray[np.float64]
"""Double precision, in which everything here is computed."""
BoolArray = npt.NDArray[np.bool_]
"""Truth values."""


def known_cases(labels: Array, scores: Array) -> tuple[BoolArray, FloatArray]:
    """Return labels and scores of the cases whose label is known.

    Args:
        labels: 1 present, 0 absent, NaN unknown; shape (N,).
        scores: Finite where the label is known, shape (N,).

    Raises:
        EvaluationError: shapes differ, a label is none of the three, a score is not finite.
    """
    truth = np.asarray(labels, dtype=np.float64)
    values = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise EvaluationError(
            f"labels have shape {truth.shape} and scores {values.shape}; give one of each per image"
        )
    known = ~np.isnan(truth)
    truth, values = truth[known], values[known]
    if not np.isin(truth, (0.0, 1.0)).all():
        raise EvaluationError("a label is neither 0, 1 nor NaN (unknown); settle uncertain labels")
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite; "
            "the model that gave them cannot be judged, look for overflow in its training"
        )
    return truth.astype(np.bool_), values


def check_columns(labels: Array, scores: Array, num_findings: int) -> None:
    """Refuse tables that are not (N, F) with one column a finding.

    Raises:
        EvaluationError: it names the shapes.
    """
    if labels.ndim != 2 or labels.shape != scores.shape or labels.shape[1] != num_findings:
        raise EvaluationError(
            f"labels {labels.shape}, scores {scores.shape} and {num_findings} findings do not "
            "belong together; give (images, findings) for both"
        )


def finite_or_none(value: float) -> float | None:
    """Return a plain float, or None where it is not finite: the form that JSON can hold."""
    return float(value) if np.isfinite(value) else None


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are defined, or None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
