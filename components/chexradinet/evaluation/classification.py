"""How well scores rank: AUROC and average precision per finding, with intervals over patients.

Throughout: `labels` are 1 (present), 0 (absent) or NaN (unknown, left out), shape (N,) or (N, F);
`scores` have the same shape, higher speaks for the finding, finite if the label is known;
`findings` are the names of the F columns; `patient_ids` are the patients of the N images. Other
shapes and values raise an EvaluationError.

A finding without a positive or without a negative case has no AUROC: it is None here, never 0.5 or
NaN, and every mean says over how many findings it runs.

A bootstrap resample gives each patient the number of times it was drawn, and each of the patient's
images that weight. AUROC and average precision of all resamples then come from one sort of the
scores; scikit-learn, which sorts once per resample, gives the same numbers 27 times slower (5,000
images, 1,000 resamples).

Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); patients are drawn whole,
because their images resemble each other.

scikit-learn takes over a second to import, so only the functions that need it do so: planning,
reading and publishing import this module for its types alone.
"""

from collections.abc import Iterator, Sequence
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

_CHUNK_NUMBERS = 1 << 21
_MIN_DEFINED_FRACTION = 0.9


def known_cases(labels: Array, scores: Array) -> tuple[BoolArray, FloatArray]:
    """Return labels and scores of the cases whose label is known, of one finding.

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
        raise EvaluationError(
            "a label is neither 0, 1 nor NaN (unknown); resolve uncertain labels first"
        )
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite; "
            "the model that gave them cannot be evaluated, look for overflow in its training"
        )
    return truth.astype(np.bool_), values


def check_columns(labels: Array, scores: Array, num_findings: int) -> None:
    """Refuse tables that are not (N, F) with one column per finding."""
    if labels.ndim != 2 or labels.shape != scores.shape or labels.shape[1] != num_findings:
        raise EvaluationError(
            f"labels {labels.shape}, scores {scores.shape} and {num_findings} findings do not "
            "belong together; give (images, findings) for both"
        )


def finite_or_none(value: float) -> float | None:
    """Return a plain float, or None if it is not finite: the form that JSON can hold."""
    return float(value) if np.isfinite(value) else None


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are defined, or None if none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def auroc(labels: Array, scores: Array) -> float | None:
    """Return the area under the ROC curve, in [0, 1]; None if a class is missing."""
    truth, values = known_cases(labels, scores)
    if truth.all() or not truth.any():
        return None
    from sklearn import metrics

    return float(metrics.roc_auc_score(truth, values))


def auprc(labels: Array, scores: Array) -> float | None:
    """Return the average precision, in [0, 1]; None if a class is missing.

    A score that knows nothing reaches the prevalence.
    """
    truth, values = known_cases(labels, scores)
    if truth.all() or not truth.any():
        return None
    from sklearn import metrics

    return float(metrics.average_precision_score(truth, values))


def classification_metrics(labels: Array, scores: Array, findings: Sequence[str]) -> dict[str, Any]:
    """Return the ranking metrics of every finding and their means.

    Returns:
        `auroc` and `auprc` (finding to value or None), `positives` and `negatives` (finding to
        count), `mean_auroc` and `mean_auprc` over the `mean_auroc_num_findings` that are defined,
        and `not_defined`, the names of the others.
    """
    check_columns(labels, scores, len(findings))
    areas = {name: auroc(labels[:, i], scores[:, i]) for i, name in enumerate(findings)}
    precisions = {name: auprc(labels[:, i], scores[:, i]) for i, name in enumerate(findings)}
    not_defined = [name for name in findings if areas[name] is None]
    return {
        "mean_auroc": mean_or_none(list(areas.values())),
        "mean_auroc_num_findings": len(findings) - len(not_defined),
        "mean_auprc": mean_or_none(list(precisions.values())),
        "auroc": areas,
        "auprc": precisions,
        "positives": {name: int((labels[:, i] == 1).sum()) for i, name in enumerate(findings)},
        "negatives": {name: int((labels[:, i] == 0).sum()) for i, name in enumerate(findings)},
        "not_defined": not_defined,
    }


def roc_points(
    labels: Array, scores: Array, max_points: int = 200
) -> dict[str, list[float]] | None:
    """Return the ROC curve with few points and finite thresholds; None if a class is missing.

    Args:
        labels: Shape (N,).
        scores: Shape (N,).
        max_points: Most points; they are spread evenly along the curve's length, ends included.

    Returns:
        `fpr`, `tpr` and `thresholds`, of equal length; the first threshold, infinite by definition,
        is the highest score, because Kubeflow's metadata store refuses infinity.
    """
    truth, values = known_cases(labels, scores)
    if truth.all() or not truth.any():
        return None
    from sklearn import metrics

    curve = np.stack(metrics.roc_curve(truth, values))
    if curve.shape[1] > max_points:
        length = np.r_[0.0, np.cumsum(np.diff(curve[0]) + np.diff(curve[1]))]
        wanted = np.linspace(0.0, length[-1], max_points)
        keep = np.unique(np.searchsorted(length, wanted - 1e-12).clip(0, len(length) - 1))
        keep[-1] = len(length) - 1
        curve = curve[:, keep]
    curve[2] = np.minimum(curve[2], values.max())
    return dict(zip(("fpr", "tpr", "thresholds"), curve.tolist(), strict=True))


def bootstrap_intervals(
    labels: Array,
    scores: Array,
    patient_ids: Sequence[Any] | Array,
    findings: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95% percentile intervals from `samples` resamples, patients resampled whole.

    Returns:
        `auroc` and `auprc` (finding to `[low, high]`, or None if not defined or too rare),
        `mean_auroc`, `samples`, `num_patients` and `method`. Equal seeds give equal intervals.
    """
    check_columns(labels, scores, len(findings))
    resampled = [np.full((0, len(findings), 2), np.nan)]
    for weights in patient_weights(patient_ids, samples, seed) if len(labels) else ():
        ranked = [weighted_ranking(*each, weights) for each in zip(labels.T, scores.T, strict=True)]
        resampled.append(np.moveaxis(np.array(ranked), 2, 0))
    areas, precisions = np.moveaxis(np.concatenate(resampled), 2, 0)
    return {
        "mean_auroc": interval_of(mean_of_defined(areas)),
        "auroc": {name: interval_of(areas[:, i]) for i, name in enumerate(findings)},
        "auprc": {name: interval_of(precisions[:, i]) for i, name in enumerate(findings)},
        "samples": samples,
        "num_patients": len(np.unique(np.asarray(patient_ids))),
        "method": "percentile bootstrap over patients, 95%",
    }


def paired_bootstrap_difference(
    labels: Array,
    scores_a: Array,
    scores_b: Array,
    patient_ids: Sequence[Any] | Array,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the difference in mean AUROC of two models on the same images, a minus b.

    Both are evaluated on the same resamples, so what the images have in common cancels out.

    Returns:
        `difference` and `ci95` (`[low, high]`), both None if no finding is defined,
        `num_findings`, `num_patients` and `samples`.
    """
    for scores in (scores_a, scores_b):
        check_columns(labels, scores, scores.shape[-1])
    columns = range(labels.shape[1])
    defined = [i for i in columns if auroc(labels[:, i], scores_a[:, i]) is not None]

    def differences(weights: FloatArray) -> FloatArray:
        return mean_of_defined(
            np.stack(
                [
                    weighted_ranking(labels[:, i], scores_a[:, i], weights)[0]
                    - weighted_ranking(labels[:, i], scores_b[:, i], weights)[0]
                    for i in defined
                ],
                axis=1,
            )
        )

    chunks = patient_weights(patient_ids, samples, seed) if defined else iter(())
    resampled = [differences(each) for each in chunks]
    point = differences(np.ones((len(labels), 1))) if defined else [np.nan]
    return {
        "difference": finite_or_none(point[0]),
        "ci95": interval_of(np.concatenate(resampled)) if resampled else None,
        "num_findings": len(defined),
        "num_patients": len(np.unique(np.asarray(patient_ids))),
        "samples": samples,
    }


def patient_weights(
    patient_ids: Sequence[Any] | Array, samples: int, seed: int
) -> Iterator[FloatArray]:
    """Yield how often each image was drawn, shape (N, resamples of this chunk), chunk by chunk.

    Raises:
        EvaluationError: there are no images.
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
    """Return AUROC and average precision of one finding under each column of weights.

    Args:
        labels: Shape (N,).
        scores: Shape (N,).
        weights: Weight of each image in each resample, shape (N, S).

    Returns:
        Two arrays of shape (S,), in [0, 1], NaN if a class has no weight; ties count one half in
        the first and come together in the second.
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


def mean_area(labels: Array, scores: Array, weights: FloatArray) -> FloatArray:
    """Return the mean AUROC over the findings that are defined in each resample, shape (S,)."""
    columns = zip(labels.T, scores.T, strict=True)
    return mean_of_defined(np.stack([weighted_ranking(*each, weights)[0] for each in columns], 1))


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

    None if more than one resample in ten is not defined: a finding too rare for an interval.
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
