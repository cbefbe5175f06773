"""The reference implementation of radiomics: pyradiomics' own extractor."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from radiomics.featureextractor import RadiomicsFeatureExtractor

from chexradinet.regions import FEATURE_CLASSES, FEATURE_NAMES

Reference = Callable[..., NDArray[np.float64]]


@pytest.fixture
def executed() -> Iterator[Reference]:
    """Return `executed(image, top, left, bottom, right, bin_width=…, spacing_mm=…)`.

    It gives the 102 values of `RadiomicsFeatureExtractor.execute()`; its log is silenced meanwhile.
    """
    logger = logging.getLogger("radiomics")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield _executed
    logger.setLevel(level)


def _executed(
    image: NDArray[np.uint8],
    top: int,
    left: int,
    bottom: int,
    right: int,
    *,
    bin_width: float = 8.0,
    spacing_mm: float = 1.0,
) -> NDArray[np.float64]:
    extractor = RadiomicsFeatureExtractor(
        binWidth=bin_width, force2D=True, force2Ddimension=0, label=1, additionalInfo=False
    )
    extractor.disableAllFeatures()
    for feature_class in FEATURE_CLASSES:
        extractor.enableFeatureClassByName(feature_class)
    mask = np.zeros(image.shape, np.uint8)
    mask[top:bottom, left:right] = 1
    nodes = [sitk.GetImageFromArray(array[None]) for array in (image.astype(np.float64), mask)]
    for node in nodes:
        node.SetSpacing((spacing_mm, spacing_mm, 1.0))  # type: ignore[no-untyped-call]
    with np.errstate(all="ignore"):
        found = extractor.execute(*nodes)
    return np.array([float(found[f"original_{name}"]) for name in FEATURE_NAMES])
