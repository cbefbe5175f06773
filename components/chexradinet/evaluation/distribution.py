"""Distributions as counts in bins, small enough for a bundle, and how far two of them are apart.

The distance is the population stability index. Its size under no change depends on how many images
were seen, so every comparison carries a p-value from a simulated null with the same counts, instead
of the customary fixed limits of 0.1 and 0.25, which small samples exceed by chance.

Source: Yurdakul and Naranjo 2020, Journal of Risk Model Validation 14(4) (the null).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.evaluation.cases import FloatArray

MISSING = "(missing)"
"""Category of a value that is not there."""
OTHER = "(other)"
"""Category of a value that the reference has not seen."""
_MAX_CATEGORIES = 20
_SMOOTHING = 0.5


def numeric_distribution(values: Sequence[float] | FloatArray, bins: int = 10) -> dict[str, Any]:
    """Return a distribution of numbers in bins of equal mass.

    Args:
        values: NaN where missing.
        bins: Most bins; fewer where values repeat.

    Returns:
        `kind` numeric, inner `edges`, `counts` (one more than edges, then the missing), JSON-ready.
    """
    known = _finite(values)
    levels = np.arange(1, bins) / bins
    edges = np.unique(np.quantile(known, levels)) if len(known) else np.empty(0)
    distribution: dict[str, Any] = {"kind": "numeric", "edges": [float(edge) for edge in edges]}
    return {**distribution, "counts": count_in(distribution, values).tolist()}


def categorical_distribution(values: Sequence[Any] | FloatArray) -> dict[str, Any]:
    """Return a distribution of names; the rarest beyond 20 are counted as other.

    Args:
        values: Names; None, empty and NaN are missing.

    Returns:
        `kind` categorical, `categories`, `counts` (one a category, then other, then missing).
    """
    names, counts = np.unique([_name(value) for value in values], return_counts=True)
    frequent = sorted(zip(-counts, names, strict=True))
    kept = [str(name) for _, name in frequent if name != MISSING][:_MAX_CATEGORIES]
    distribution: dict[str, Any] = {"kind": "categorical", "categories": kept}
    return {**distribution, "counts": count_in(distribution, values).tolist()}


def count_in(
    distribution: Mapping[str, Any], values: Sequence[Any] | FloatArray
) -> npt.NDArray[np.int64]:
    """Return how many values fall into each bin of a reference distribution."""
    if distribution["kind"] == "numeric":
        edges = np.asarray(distribution["edges"], dtype=np.float64)
        known = _finite(values)
        placed = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
        return np.append(placed, len(values) - len(known)).astype(np.int64)
    categories = [*distribution["categories"], OTHER, MISSING]
    place = {name: index for index, name in enumerate(categories)}
    places = [place.get(_name(value), place[OTHER]) for value in values]
    placed = np.bincount(np.array(places, dtype=np.int64), minlength=len(categories))
    return placed.astype(np.int64)


def population_stability_index(
    reference: npt.NDArray[np.int64], observed: npt.NDArray[np.int64]
) -> FloatArray:
    """Return the index of counts against counts, bins along the last axis, half a count added."""
    expected = _shares(reference)
    found = _shares(observed)
    index: FloatArray = ((found - expected) * np.log(found / expected)).sum(axis=-1)
    return index


def stability_test(
    distribution: Mapping[str, Any],
    values: Sequence[Any] | FloatArray,
    num_independent: tuple[int, int],
    samples: int,
    seed: int,
) -> dict[str, float]:
    """Compare values with a reference distribution.

    Args:
        distribution: Of `numeric_distribution` or `categorical_distribution`.
        values: What was seen, at least one.
        num_independent: Patients behind the reference and behind the values; images of one patient
            count once in the null, which keeps false alarms below the stated rate.
        samples: Draws of the null; the smallest p-value is `1 / (samples + 1)`.
        seed: Of the draws.

    Returns:
        `psi` and `p_value`.
    """
    reference = np.asarray(distribution["counts"], dtype=np.int64)
    observed = count_in(distribution, values)
    generator = np.random.default_rng(seed)
    shares = _shares(reference)
    drawn = [generator.multinomial(num, shares, size=samples) for num in num_independent]
    null = population_stability_index(drawn[0], drawn[1])
    # On equal footing with the null: as if there were one image a patient.
    scaled = [
        counts * (num / max(1, counts.sum()))
        for counts, num in zip((reference, observed), num_independent, strict=True)
    ]
    found = float(population_stability_index(scaled[0], scaled[1]))
    exceeded = int((null >= found - 1e-12).sum())
    return {"psi": found, "p_value": (1 + exceeded) / (samples + 1)}


def _shares(counts: npt.NDArray[Any]) -> FloatArray:
    smoothed = np.asarray(counts, dtype=np.float64) + _SMOOTHING
    shares: FloatArray = smoothed / smoothed.sum(axis=-1, keepdims=True)
    return shares


def _finite(values: Sequence[Any] | FloatArray) -> FloatArray:
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return numbers[np.isfinite(numbers)]


def _name(value: Any) -> str:  # noqa: ANN401 - a cell of a table
    if value is None or value == "" or value != value:
        return MISSING
    return str(value)
