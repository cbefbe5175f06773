"""Resampling of patients, as weights: 95% intervals without drawing a data set a thousand times.

A resample gives each patient the number of times it was drawn, and each of the patient's images
that weight. AUROC and average precision of all resamples then come from one sort of the scores.

Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); patients are drawn whole,
because their images resemble each other.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from chexradinet.errors import EvaluationError
from chexradinet.evaluation.cases import Array, BoolArray, FloatArray, known_cases

_CHUNK_NUMBERS = 1 << 21
_MIN_DEFINED_FRACTION = 0.9


def patient_weights(
    patient_ids: Sequence[Any] | Array, samples: int, seed: int
) -> Iterator[FloatArray]:
    """Yield how often each image was drawn, shape (N, samples of this chunk), chunk by chunk.

    Args:
        patient_ids: The patient of each image, N of them.
        samples: Resamples over all chunks.
        seed: Equal seeds and patients give equal weights.

    Raises:
        EvaluationError: there is no image.
    """
    patients, member = np.unique(np.asarray(patient_ids), return_inverse=True)
    if not len(patients):
        raise EvaluationError("no image to resample; a bootstrap needs at least one patient")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_NUMBERS // len(member))
    for start in range(0, samples, rows):
        size = (min(rows, samples - start), len(patients))
        drawn = generator.integers(len(patients), size=size)
        drawn += np.arange(size[0])[:, None] * len(patients)
        counts = np.bincount(drawn.ravel(), minlength=size[0] * len(patients)).reshape(size)
        yield counts.T.astype(np.float64)[member]


def weighted_ranking(
    labels: Array, scores: Array, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return AUROC and average precision under each column of weights.

    Args:
        labels: 1, 0 or NaN (left out), shape (N,).
        scores: Shape (N,).
        weights: Weight of each image in each resample, shape (N, S).

    Returns:
        Two arrays of shape (S,), in [0, 1], NaN where a class has no weight; ties count one half in
        the first and come together in the second.

    Raises:
        EvaluationError: shapes differ, or a score is not finite.
    """
    truth, values = known_cases(labels, scores)
    if not truth.any():
        undefined = np.full(weights.shape[1], np.nan)
        return undefined, undefined
    heavy = weights[~np.isnan(np.asarray(labels, dtype=np.float64))]
    positives, negatives = _grouped_weights(truth, values, heavy)
    num_positives, num_negatives = positives.sum(axis=0), negatives.sum(axis=0)
    below = np.cumsum(negatives, axis=0) - negatives / 2
    areas = _ratio((positives * below).sum(axis=0), num_positives * num_negatives)
    found = np.cumsum(positives[::-1], axis=0)[::-1]
    flagged = found + np.cumsum(negatives[::-1], axis=0)[::-1]
    precision = found / np.where(flagged > 0, flagged, 1.0)
    total = num_positives * (num_negatives > 0)
    return areas, _ratio((positives * precision).sum(axis=0), total)


def weighted_auroc(labels: Array, scores: Array, weights: FloatArray) -> FloatArray:
    """Return the AUROC under each column of weights; as `weighted_ranking`."""
    return weighted_ranking(labels, scores, weights)[0]


def _grouped_weights(
    truth: BoolArray, values: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the weight of positives and negatives by ascending score, shape (G, S) each.

    A group is one score; scores in a row that only negatives have are one group, because no metric
    here looks between them.
    """
    order = np.argsort(values, kind="stable")
    ordered, sorted_truth = values[order], truth[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    holds_positive = np.logical_or.reduceat(sorted_truth, starts)
    keep = np.r_[True, holds_positive[1:] | holds_positive[:-1]]
    starts, holds_positive = starts[keep], holds_positive[keep]
    total = np.add.reduceat(weights[order], starts, axis=0)
    positives = np.zeros_like(total)
    first = np.searchsorted(np.flatnonzero(sorted_truth), starts[holds_positive])
    positives[holds_positive] = np.add.reduceat(weights[order[sorted_truth]], first, axis=0)
    return positives, total - positives


def interval_of(values: FloatArray) -> list[float] | None:
    """Return the 2.5% and 97.5% quantile of resampled values.

    None where more than one resample in ten is not defined: a finding too rare for an interval.
    """
    defined = values[np.isfinite(values)]
    if not len(defined) or len(defined) < _MIN_DEFINED_FRACTION * len(values):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return [float(low), float(high)]


def mean_of_defined(values: FloatArray) -> FloatArray:
    """Return the mean over the findings that are defined in each resample: (S, F) to (S,)."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(float))


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    safe = np.where(denominator > 0, denominator, 1.0)
    ratio: FloatArray = np.where(denominator > 0, numerator / safe, np.nan)
    return ratio
