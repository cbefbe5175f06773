"""Is tonight like the validation split? Scores, metadata, exposure and embeddings are compared.

Every comparison has a p-value under "nothing has changed"; it raises the alarm when its p-value is
below the night's false-alarm rate divided by the number of comparisons (Bonferroni). So at most
that part of nights without a change raises any alarm.

Source: Szekely and Rizzo 2004, InterStat 5 (energy distance); arXiv:2410.13174 (what to watch in
chest X-rays: scores, embeddings and metadata, which need no labels).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.errors import MismatchError
from chexradinet.evaluation.classification import BoolArray, FloatArray
from chexradinet.evaluation.reference import (
    NOT_DEFINED,
    Population,
    Reference,
    embedding_coordinates,
    one_row_per_patient,
    ood_flags,
    ood_scores,
    stability_test,
)

FALSE_ALARMS_PER_NIGHT = 0.01
"""Largest fraction of unchanged nights that raise an alarm."""
MIN_PATIENTS = 20
"""Fewest patients of a night that can be compared."""
_SAMPLES = 9999
_PERMUTATIONS = 4999
_MAX_NIGHT = 512
_CHUNK = 500


def drift(
    reference: Reference,
    night: Population,
    false_alarms: float = FALSE_ALARMS_PER_NIGHT,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a night with the reference.

    Args:
        reference: Reference of the bundle that scored the night.
        night: The scored X-rays.
        false_alarms: Largest fraction of unchanged nights that may raise an alarm, in (0, 1).
        seed: Random seed of the simulated nulls; equal input and seed give equal results.

    Returns:
        `status` (`ok` or `too_few`), `alarm`, `alarms` (names), `comparisons` (name to `p_value`
        and a distance: `psi`, `energy_distance` or `fraction`), `rule`, `num_images`,
        `num_patients`, `ood_fraction`; JSON-ready.

    Raises:
        MismatchError: findings or embeddings are not those of the reference.
    """
    if list(night.findings) != reference.document["findings"]:
        raise MismatchError(
            f"the night has findings {list(night.findings)}, the reference "
            f"{reference.document['findings']}; use the reference of the bundle that scored it"
        )
    flags = ood_flags(reference, ood_scores(reference, night.embeddings))
    defined = reference.document["ood"]["status"] != NOT_DEFINED and len(flags) > 0
    report: dict[str, Any] = {
        "status": "too_few",
        "alarm": False,
        "alarms": [],
        "comparisons": {},
        "num_images": len(night.patient_ids),
        "num_patients": night.num_patients,
        "ood_fraction": float(flags.mean()) if defined else None,
        "rule": f"compared only with at least {MIN_PATIENTS} patients",
    }
    if night.num_patients < MIN_PATIENTS:
        return report
    comparisons = _distribution_tests(reference, night, seed)
    if defined:
        comparisons["embedding"] = _embedding_test(reference, night, seed)
        comparisons["ood"] = _ood_test(reference.document["ood"], night, flags, seed)
    limit = false_alarms / len(comparisons)
    alarms = [name for name, found in comparisons.items() if found["p_value"] < limit]
    rule = (
        f"alarm if p < {false_alarms:g} / {len(comparisons)} comparisons: at most "
        f"{false_alarms:.1%} of unchanged nights raise one"
    )
    return {
        **report,
        "status": "ok",
        "alarm": bool(alarms),
        "alarms": alarms,
        "comparisons": comparisons,
        "rule": rule,
    }


def _distribution_tests(
    reference: Reference, night: Population, seed: int
) -> dict[str, dict[str, float]]:
    known = reference.document["distributions"]
    patients = (int(reference.document["num_patients"]), night.num_patients)
    shared = {name: column for name, column in night.columns.items() if name in known}
    return {
        name: stability_test(known[name], values, patients, _SAMPLES, seed + index)
        for index, (name, (_, values)) in enumerate(shared.items())
    }


def _embedding_test(reference: Reference, night: Population, seed: int) -> dict[str, float]:
    generator = np.random.default_rng(seed)
    rows = generator.permutation(one_row_per_patient(night.patient_ids))[:_MAX_NIGHT]
    coordinates = embedding_coordinates(reference, np.asarray(night.embeddings)[rows])
    distance, p_value = energy_test(
        reference.arrays["sample"].astype(np.float64), coordinates, _PERMUTATIONS, seed
    )
    return {"energy_distance": distance, "p_value": p_value}


def _ood_test(
    rule: Mapping[str, Any], night: Population, flags: BoolArray, seed: int
) -> dict[str, float]:
    """Test the number of flagged patients; the threshold's own uncertainty is part of the null."""
    generator = np.random.default_rng(seed)
    rows = one_row_per_patient(night.patient_ids)
    flagged = int(flags[rows].sum())
    num = int(rule["num_held_out_patients"])
    above = (num + 1) * rule["rate"]
    rates = generator.beta(above, num + 1 - above, size=_SAMPLES)
    null = generator.binomial(len(rows), rates)
    exceeded = int((null >= flagged).sum())
    return {"fraction": flagged / len(rows), "p_value": (1 + exceeded) / (_SAMPLES + 1)}


def energy_test(
    first: FloatArray, second: FloatArray, permutations: int, seed: int
) -> tuple[float, float]:
    """Return the energy distance of two samples and its p-value by permutation.

    Args:
        first: Shape (N, K).
        second: Shape (M, K).
        permutations: The smallest p-value is `1 / (permutations + 1)`.
        seed: Random seed of the permutations.
    """
    pooled = np.concatenate([first, second]).astype(np.float32)
    squares = (pooled**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * pooled @ pooled.T, 0))
    np.fill_diagonal(apart, 0)
    own = np.zeros((len(pooled), 1), dtype=np.float32)
    own[len(first) :] = 1
    observed = float(_energy(apart, own)[0])
    generator = np.random.default_rng(seed)
    exceeded = 0
    for start in range(0, permutations, _CHUNK):
        members = np.repeat(own, min(_CHUNK, permutations - start), axis=1)
        null = _energy(apart, generator.permuted(members, axis=0))
        exceeded += int((null >= observed - 1e-6 * abs(observed)).sum())
    return observed, (1 + exceeded) / (permutations + 1)


def _energy(apart: npt.NDArray[np.float32], members: npt.NDArray[np.float32]) -> FloatArray:
    """Return the energy distance for each column of memberships (1 = second sample)."""
    num_second = members.sum(axis=0, dtype=np.float64)
    num_first = len(members) - num_second
    rows = apart.sum(axis=1, dtype=np.float64)
    within_second = (members * (apart @ members)).sum(axis=0, dtype=np.float64)
    touching = rows @ members
    between = touching - within_second
    within_first = rows.sum() - 2 * touching + within_second
    distance: FloatArray = (
        2 * between / (num_first * num_second)
        - within_second / num_second**2
        - within_first / num_first**2
    )
    return distance
