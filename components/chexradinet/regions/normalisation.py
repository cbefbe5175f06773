"""Bringing features of any unit and magnitude to one scale.

Signed logarithm, then distance from the median in robust standard deviations, clipped. Without it
the contrastive term sees little but the features that are large by unit: raw values run
from 1e-4 to 1e8.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexradinet.errors import MismatchError, TrainingError
from chexradinet.regions.feature_names import FEATURE_NAMES

CLIP = 5.0
"""Largest normalised value, on either side of 0."""

NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""

_RELATIVE_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class RadiomicsNormalisation:
    """Training statistics of each feature's signed logarithm."""

    median: NDArray[np.float64]
    """Shape (F,)."""
    spread: NDArray[np.float64]
    """Interquartile range over `NORMAL_IQR`, 1 for a feature that does not vary; shape (F,)."""

    def apply(self, values: ArrayLike) -> NDArray[np.float32]:
        """Return normalised features in [-5, 5], shape (n, F).

        Args:
            values: Features of rows whose status is `ok`, shape (n, F), finite.

        Raises:
            TrainingError: a value is not finite.
            MismatchError: the number of features is another.
        """
        logs = _signed_log(_checked(values, len(self.median)))
        scaled = (logs - self.median) / self.spread
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)


def fit_normalisation(
    values: ArrayLike, num_features: int = len(FEATURE_NAMES)
) -> RadiomicsNormalisation:
    """Return the statistics of the given rows.

    Args:
        values: Features of the *training split's* regions whose status is `ok`, shape (n, F),
            n at least 1. Which rows these are is the caller's business: rows of other splits would
            leak into the model.
        num_features: F; unless given, the 102 of a region.

    Raises:
        TrainingError: there is no row, or a value is not finite.
        MismatchError: the number of features is another.
    """
    logs = _signed_log(_checked(values, num_features))
    if len(logs) == 0:
        raise TrainingError(
            "no region of the training split has radiomics features; guidance needs at least one: "
            "look at the statuses of the regions, or train with the recipe `none` or `sharpen`"
        )
    lower, median, upper = np.percentile(logs, (25, 50, 75), axis=0)
    spread = (upper - lower) / NORMAL_IQR
    # A constant feature differs by rounding only, and rounding must not be blown up to +-5.
    constant = spread <= _RELATIVE_ROUNDING * np.maximum(1.0, np.abs(median))
    return RadiomicsNormalisation(median=median, spread=np.where(constant, 1.0, spread))


def _signed_log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values))


def _checked(values: ArrayLike, num_features: int) -> NDArray[np.float64]:
    checked = np.asarray(values, dtype=np.float64)
    if checked.ndim != 2 or checked.shape[1] != num_features:
        raise MismatchError(
            f"features have shape {checked.shape}; it must be (n, {num_features}), in the "
            "order of their names"
        )
    if not np.isfinite(checked).all():
        rows = int((~np.isfinite(checked)).any(axis=1).sum())
        raise TrainingError(
            f"{rows} of {len(checked)} feature rows hold NaN or infinity; drop the rows whose "
            "status is not ok before normalising"
        )
    return checked
