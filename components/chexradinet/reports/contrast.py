"""Which radiomics features tell images with a finding from images without.

The measure is the difference of medians over a robust standard deviation: radiomics features have
heavy tails, and one extreme region must not decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chexradinet.evaluation.classification import Array, FloatArray

_MAD_TO_STANDARD_DEVIATION = 1.4826
_MIN_CASES = 5


@dataclass(frozen=True, kw_only=True)
class FeatureDifference:
    """One feature between images with and without one finding."""

    finding: str
    """The finding."""
    feature: str
    """Name of the feature, as pyradiomics spells it."""
    median_with: float
    """Median over images with the finding."""
    median_without: float
    """Median over images without it."""
    standardised: float
    """Difference of the medians in robust standard deviations of all images."""
    num_with: int
    """Images with the finding and with features."""
    num_without: int
    """Images without it and with features."""


@dataclass(frozen=True, kw_only=True)
class FeatureContrast:
    """The features that differ most, largest difference first."""

    rows: tuple[FeatureDifference, ...]
    """At most as many as were asked for."""
    num_images: int
    """Images with features."""
    num_compared: int
    """Pairs of finding and feature that could be compared."""


def feature_contrast(
    features: Array,
    names: Sequence[str],
    labels: Array,
    findings: Sequence[str],
    top: int = 10,
) -> FeatureContrast:
    """Compare every feature between images with and without every finding.

    Args:
        features: One row an image, NaN where it has none; shape (N, R).
        names: Of the R features.
        labels: 1, 0 or NaN, shape (N, F).
        findings: Of the F columns.
        top: How many rows to keep.

    Returns:
        Features without spread, and findings with fewer than five cases on a side, take no part.
    """
    measured = np.isfinite(features).all(axis=1)
    values = np.asarray(features, dtype=np.float64)[measured]
    truth = np.asarray(labels, dtype=np.float64)[measured]
    rows: list[FeatureDifference] = []
    for column, finding in enumerate(findings):
        rows += _differences(values, truth[:, column], names, finding)
    rows.sort(key=lambda row: (-abs(row.standardised), row.finding, row.feature))
    return FeatureContrast(
        rows=tuple(rows[:top]), num_images=int(measured.sum()), num_compared=len(rows)
    )


def _differences(
    values: FloatArray, truth: FloatArray, names: Sequence[str], finding: str
) -> list[FeatureDifference]:
    present, absent = truth == 1, truth == 0
    num_with, num_without = int(present.sum()), int(absent.sum())
    if min(num_with, num_without) < _MIN_CASES:
        return []
    known = values[present | absent]
    spread = np.median(np.abs(known - np.median(known, axis=0)), axis=0)
    spread *= _MAD_TO_STANDARD_DEVIATION
    middle_with = np.median(values[present], axis=0)
    middle_without = np.median(values[absent], axis=0)
    return [
        FeatureDifference(
            finding=finding,
            feature=names[column],
            median_with=float(middle_with[column]),
            median_without=float(middle_without[column]),
            standardised=float((middle_with[column] - middle_without[column]) / spread[column]),
            num_with=num_with,
            num_without=num_without,
        )
        for column in np.flatnonzero(spread > 0).tolist()
    ]
