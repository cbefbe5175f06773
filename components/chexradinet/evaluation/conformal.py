"""The distance beyond which an X-ray counts as unlike the reference, and how often by chance.

Source: Lei et al. 2018, JASA 113 (split conformal inference).
"""

from dataclasses import dataclass

import numpy as np

from chexradinet.evaluation.cases import FloatArray


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A threshold of distances with the rate that it holds."""

    threshold: float
    """Flagged above it."""
    rate: float
    """Part of new patients like those it was set on that are flagged, in (0, 1)."""
    rule: str
    """Both as a sentence for readers."""


def conformal_limit(distances: FloatArray, quantile: float) -> Limit:
    """Return the limit that a new case of the same kind exceeds at a known rate.

    Args:
        distances: One a patient, none of them used in making the distance; at least one.
        quantile: The rate shall be at most one minus this, in (0, 1). Fewer than about
            1 / (1 - quantile) patients cannot hold it: their highest distance is the threshold,
            and 1 / (patients + 1) is the rate.
    """
    num = len(distances)
    # Less a trifle: 100 * 0.99 must be 99, however it is rounded.
    rank = min(int(np.ceil((num + 1) * quantile - 1e-9)), num)
    threshold, rate = float(np.sort(distances)[rank - 1]), (num + 1 - rank) / (num + 1)
    wanted = 1 - quantile
    rule = (
        f"Flagged beyond a distance of {threshold:.2f}, as {rate:.1%} of X-rays like those of the "
        "validation split are by chance"
    )
    if rate > wanted + 1e-9:
        rule += f" ({num} patients held out are too few for {wanted:.1%})"
    return Limit(threshold=threshold, rate=rate, rule=f"{rule}.")
