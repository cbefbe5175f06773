"""How sure a localisation number is, and whether one model locates better than another.

The resampling is that of `bootstrap`: patients whole, both models on the same resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chexradinet.evaluation.bootstrap import interval_of, mean_of_defined, patient_weights
from chexradinet.evaluation.cases import BoolArray, FloatArray, finite_or_none
from chexradinet.evaluation.localization import LOCALIZATION_KEYS, cases_by_finding


def localization_intervals(
    hits: Mapping[str, BoolArray],
    findings: Sequence[str],
    patient_ids: Sequence[Any],
    baseline: Mapping[str, BoolArray] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95% intervals of the localisation accuracy, or of its difference from a baseline.

    Args:
        hits: Of `localization_hits`.
        findings: The finding of each case, N of them.
        patient_ids: The patient of each case, N of them; resampled whole.
        baseline: Hits of another model or control on the same cases; the result is then the paired
            difference, `hits` minus this.
        samples: Resamples.
        seed: Equal seeds give equal intervals.

    Returns:
        For each measure `difference` (or `value` without a baseline) and `ci95`, None where not
        defined.
    """
    label = "value" if baseline is None else "difference"
    members = cases_by_finding(findings, len(patient_ids))
    if not members:
        return {key: {label: None, "ci95": None} for key in LOCALIZATION_KEYS}
    gains = {
        key: hits[key].astype(float) - (baseline[key] if baseline is not None else 0.0)
        for key in LOCALIZATION_KEYS
    }
    weights = np.concatenate(list(patient_weights(patient_ids, samples, seed)), axis=1)
    once = np.ones((len(patient_ids), 1))
    return {
        key: {
            label: finite_or_none(_mean_over_findings(gains[key], members, once)[0]),
            "ci95": interval_of(_mean_over_findings(gains[key], members, weights)),
        }
        for key in LOCALIZATION_KEYS
    }


def _mean_over_findings(
    gains: FloatArray, members: Mapping[str, BoolArray], weights: FloatArray
) -> FloatArray:
    fractions = []
    for rows in members.values():
        heavy = weights[rows]
        total = heavy.sum(axis=0)
        mean = (gains[rows] @ heavy) / np.where(total > 0, total, 1.0)
        fractions.append(np.where(total > 0, mean, np.nan))
    return mean_of_defined(np.stack(fractions, axis=1))
