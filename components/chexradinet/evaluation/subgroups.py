"""Who and when the model serves less well: AUROC by view, sex and age, and the worth of acting.

A gap is the AUROC in a group minus that in all other images. Its p-value is that of a normal
distribution with the bootstrap's standard error (patients resampled whole); it is flagged if it is
below 5% over the number of comparisons (Bonferroni). Cells with too few cases are not compared.

Source: Seyyed-Kalantari et al. 2021, Nature Medicine 27 (gaps between groups in chest X-rays);
Vickers and Elkin 2006, Medical Decision Making 26 (decision curve).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from chexradinet.evaluation.classification import (
    Array,
    BoolArray,
    FloatArray,
    classification_metrics,
    interval_of,
    known_cases,
    patient_weights,
    weighted_ranking,
)

MIN_CASES = 10
"""Fewest positive and fewest negative cases in a group, and outside it, that are compared."""
AGE_LIMITS = (18, 40, 60, 80)
"""First year of each age group but the youngest."""
GAP_RULE = (
    "AUROC in the group minus AUROC in all others; flagged if p < 0.05 / comparisons (Bonferroni), "
    "standard error by bootstrap over patients"
)
_ALPHA = 0.05
_MAX_SAMPLES = 200
_TARGETS = (0.02, 0.05, *(step / 20 for step in range(2, 13)))
UNKNOWN = "unknown"


def age_groups(ages: Sequence[float | None] | Array) -> list[str]:
    """Return the age group of each image, `unknown` without an age."""
    names = [f"under {AGE_LIMITS[0]}"]
    names += [f"{low}-{high - 1}" for low, high in pairwise(AGE_LIMITS)]
    names.append(f"{AGE_LIMITS[-1]} and over")
    values = np.array([np.nan if age is None else age for age in ages], dtype=np.float64)
    places = np.searchsorted(AGE_LIMITS, values, side="right")
    return [
        UNKNOWN if np.isnan(value) else names[place]
        for value, place in zip(values, places, strict=True)
    ]


def subgroup_metrics(
    labels: Array,
    scores: Array,
    patient_ids: Sequence[Any],
    findings: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    samples: int = _MAX_SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the ranking metrics of each group, and the gaps between groups.

    Args:
        labels: 1, 0 or NaN, shape (N, F).
        scores: Shape (N, F).
        patient_ids: The patient of each image.
        findings: Names of the F columns.
        groups: Attribute (`view`, `sex`, `age`) to the group of each image.
        samples: Resamples for the standard errors, at most 200.
        seed: Random seed of the resamples.

    Returns:
        `by_group` (attribute to group to `classification_metrics`, `num_images`, `num_patients`)
        and `gaps`: `rule`, `num_comparisons` and `compared`, a list of `attribute`, `group`,
        `finding`, `difference`, `ci95`, `p_value`, `positives`, `negatives` and `flagged`.
    """
    patients = np.asarray(patient_ids)
    members = {
        attribute: {name: np.array([one == name for one in values]) for name in sorted(set(values))}
        for attribute, values in groups.items()
    }
    by_group = {
        attribute: {
            name or UNKNOWN: {
                **classification_metrics(labels[rows], scores[rows], findings),
                "num_images": int(rows.sum()),
                "num_patients": len(np.unique(patients[rows])),
            }
            for name, rows in found.items()
        }
        for attribute, found in members.items()
    }
    weights = [np.zeros((0, 0))]
    if len(labels):
        weights = list(patient_weights(patient_ids, min(samples, _MAX_SAMPLES), seed))
    drawn = np.concatenate(weights, axis=1)
    compared = [
        {"attribute": attribute, "group": name, "finding": finding, **gap}
        for attribute, found in members.items()
        for name, rows in found.items()
        if name not in ("", UNKNOWN)
        for column, finding in enumerate(findings)
        if (gap := _gap(labels[:, column], scores[:, column], rows, drawn)) is not None
    ]
    limit = _ALPHA / max(1, len(compared))
    for gap in compared:
        gap["flagged"] = gap["p_value"] < limit
    return {
        "by_group": by_group,
        "gaps": {"rule": GAP_RULE, "num_comparisons": len(compared), "compared": compared},
    }


def _gap(
    labels: Array, scores: Array, rows: BoolArray, weights: FloatArray
) -> dict[str, Any] | None:
    """Return the gap of one group and finding; None if a side has too few cases."""
    for side in (rows, ~rows):
        if min((labels[side] == 1).sum(), (labels[side] == 0).sum()) < MIN_CASES:
            return None

    def difference(drawn: FloatArray) -> FloatArray:
        inside, _ = weighted_ranking(labels[rows], scores[rows], drawn[rows])
        outside, _ = weighted_ranking(labels[~rows], scores[~rows], drawn[~rows])
        return inside - outside

    found = float(difference(np.ones((len(labels), 1)))[0])
    resampled = difference(weights)
    error = float(np.nanstd(resampled, ddof=1))
    p_value = math.erfc(abs(found) / error / math.sqrt(2)) if error > 0 else float(found == 0)
    return {
        "difference": found,
        "ci95": interval_of(resampled),
        "p_value": p_value,
        "positives": int((labels[rows] == 1).sum()),
        "negatives": int((labels[rows] == 0).sum()),
    }


def decision_curve(labels: Array, probabilities: Array) -> dict[str, Any] | None:
    """Return the net benefit of acting on a finding's probability, per image.

    At a target probability t a false positive weighs t / (1 - t) of a true positive.

    Returns:
        `target`, `net_benefit` of flags at it, `flag_all` for comparison (flagging none has 0), and
        `num_images`; None without a known case.
    """
    truth, values = known_cases(labels, probabilities)
    if not len(truth):
        return None
    targets = np.array(_TARGETS)
    flags = values[:, None] >= targets
    odds = targets / (1 - targets)
    num = len(truth)
    benefit = flags[truth].sum(axis=0) / num - flags[~truth].sum(axis=0) / num * odds
    return {
        "target": targets.tolist(),
        "net_benefit": benefit.tolist(),
        "flag_all": (truth.mean() - (1 - truth.mean()) * odds).tolist(),
        "num_images": num,
    }
