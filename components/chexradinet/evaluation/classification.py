"""How well scores rank: AUROC and average precision a finding, with intervals over patients.

A finding without a positive or without a negative case has no AUROC: it is None here, never 0.5 or
NaN, and every mean says over how many findings it runs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from chexradinet.evaluation.bootstrap import (
    interval_of,
    mean_of_defined,
    patient_weights,
    weighted_auroc,
    weighted_ranking,
)
from chexradinet.evaluation.cases import (
    Array,
    FloatArray,
    check_columns,
    finite_or_none,
    known_cases,
    mean_or_none,
)


def auroc(labels: Array, scores: Array) -> float | None:
    """Return the area under the ROC curve, in [0, 1].

    Args:
        labels: 1 present, 0 absent, NaN unknown (left out); shape (N,).
        scores: Higher speaks for the finding, shape (N,).

    Returns:
        None where a class is missing: the area is not defined.

    Raises:
        EvaluationError: shapes differ, or a score is not finite.
    """
    truth, values = known_cases(labels, scores)
    if truth.all() or not truth.any():
        return None
    return float(metrics.roc_auc_score(truth, values))


def auprc(labels: Array, scores: Array) -> float | None:
    """Return the average precision, in [0, 1]; None where a class is missing.

    Arguments and errors as in `auroc`. A score that knows nothing reaches the prevalence.
    """
    truth, values = known_cases(labels, scores)
    if truth.all() or not truth.any():
        return None
    return float(metrics.average_precision_score(truth, values))


def classification_metrics(labels: Array, scores: Array, findings: Sequence[str]) -> dict[str, Any]:
    """Return the ranking metrics of every finding and their means.

    Args:
        labels: 1, 0 or NaN, shape (N, F).
        scores: Shape (N, F).
        findings: Names of the F columns.

    Returns:
        `auroc` and `auprc` (finding to value or None), `positives` and `negatives` (finding to
        count), `mean_auroc` and `mean_auprc` over the `mean_auroc_num_findings` that are defined,
        and `not_defined`, the names of the others.

    Raises:
        EvaluationError: shapes do not belong together, or a score is not finite.
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


def bootstrap_intervals(
    labels: Array,
    scores: Array,
    patient_ids: Sequence[Any] | Array,
    findings: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95% percentile intervals, patients resampled whole.

    Args:
        labels: 1, 0 or NaN, shape (N, F).
        scores: Shape (N, F).
        patient_ids: The patient of each image, N of them.
        findings: Names of the F columns.
        samples: Resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        `auroc` and `auprc` (finding to `[low, high]`, or None where not defined or too rare),
        `mean_auroc`, `samples`, `num_patients` and `method`.
    """
    check_columns(labels, scores, len(findings))
    areas, precisions = _resampled(labels, scores, patient_ids, samples, seed)
    return {
        "mean_auroc": interval_of(mean_of_defined(areas)),
        "auroc": {name: interval_of(areas[:, i]) for i, name in enumerate(findings)},
        "auprc": {name: interval_of(precisions[:, i]) for i, name in enumerate(findings)},
        "samples": samples,
        "num_patients": len(np.unique(np.asarray(patient_ids))),
        "method": "percentile bootstrap over patients, 95%",
    }


def _resampled(
    labels: Array, scores: Array, patient_ids: Sequence[Any] | Array, samples: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Return AUROC and average precision of every resample and finding, (samples, F) each."""
    areas = [np.full((0, labels.shape[1]), np.nan)]
    precisions = [areas[0]]
    for weights in patient_weights(patient_ids, samples, seed) if len(labels) else ():
        ranked = [weighted_ranking(*each, weights) for each in zip(labels.T, scores.T, strict=True)]
        areas.append(np.stack([area for area, _ in ranked], axis=1))
        precisions.append(np.stack([precision for _, precision in ranked], axis=1))
    return np.concatenate(areas), np.concatenate(precisions)


def paired_bootstrap_difference(
    labels: Array,
    scores_a: Array,
    scores_b: Array,
    patient_ids: Sequence[Any] | Array,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the difference in mean AUROC of two models on the same images, a minus b.

    Both are judged on the same resamples, so what the images have in common cancels out.

    Args:
        labels: 1, 0 or NaN, shape (N, F).
        scores_a: Shape (N, F).
        scores_b: Shape (N, F).
        patient_ids: The patient of each image, N of them.
        samples: Resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        `difference` and `ci95` (`[low, high]`), both None where no finding is defined,
        `num_findings`, `num_patients` and `samples`.
    """
    for scores in (scores_a, scores_b):
        check_columns(labels, scores, scores.shape[-1])
    columns = range(labels.shape[1])
    defined = [i for i in columns if auroc(labels[:, i], scores_a[:, i]) is not None]
    once = np.ones((len(labels), 1))
    chunks = patient_weights(patient_ids, samples, seed) if defined else iter(())
    resampled = [_differences(labels, scores_a, scores_b, defined, each) for each in chunks]
    point = _differences(labels, scores_a, scores_b, defined, once) if defined else [np.nan]
    return {
        "difference": finite_or_none(point[0]),
        "ci95": interval_of(np.concatenate(resampled)) if resampled else None,
        "num_findings": len(defined),
        "num_patients": len(np.unique(np.asarray(patient_ids))),
        "samples": samples,
    }


def _differences(
    labels: Array, scores_a: Array, scores_b: Array, columns: Sequence[int], weights: FloatArray
) -> FloatArray:
    differences = [
        weighted_auroc(labels[:, i], scores_a[:, i], weights)
        - weighted_auroc(labels[:, i], scores_b[:, i], weights)
        for i in columns
    ]
    return mean_of_defined(np.stack(differences, axis=1))


def roc_points(
    labels: Array, scores: Array, max_points: int = 200
) -> dict[str, list[float]] | None:
    """Return the ROC curve with few points and finite thresholds.

    Args:
        labels: 1, 0 or NaN, shape (N,).
        scores: Shape (N,).
        max_points: Most points; they are spread evenly along the curve's length, ends included.

    Returns:
        `fpr`, `tpr` and `thresholds`, of equal length; the first threshold, infinite by definition,
        is the highest score, because Kubeflow's metadata store refuses infinity. None where a
        class is missing.
    """
    truth, values = known_cases(labels, scores)
    if truth.all() or not truth.any():
        return None
    false_rate, true_rate, thresholds = metrics.roc_curve(truth, values)
    if len(false_rate) > max_points:
        length = np.r_[0.0, np.cumsum(np.diff(false_rate) + np.diff(true_rate))]
        wanted = np.linspace(0.0, length[-1], max_points)
        keep = np.unique(np.searchsorted(length, wanted - 1e-12).clip(0, len(length) - 1))
        keep[-1] = len(length) - 1
        false_rate, true_rate, thresholds = false_rate[keep], true_rate[keep], thresholds[keep]
    return {
        "fpr": [float(value) for value in false_rate],
        "tpr": [float(value) for value in true_rate],
        "thresholds": [float(value) for value in np.minimum(thresholds, values.max())],
    }
