"""pyradiomics' feature classes on one crop, binned once: the only module that imports them.

`RadiomicsFeatureExtractor.execute()` spends most of its time on image bookkeeping, and on binning
anew and raising the same grey levels to the same powers for each feature. Here a region is cut out
and binned once and handed to all classes. The formulas stay theirs, so the values do too, to the
last bit (a test holds them to `execute()`).

Source: van Griethuysen et al. 2017, Cancer Research 77(21), e104-e107; pyradiomics 3.0.1.
"""

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import radiomics
import SimpleITK as sitk
from numpy.typing import NDArray

from chexradinet.regions.feature_names import FEATURE_CLASSES, NAMES_BY_CLASS

# The classes log under the name of the module they are defined in. Ours are defined here and
# silent, so pyradiomics' own loggers stay as they are: the warning that a symmetrical GLCM makes
# Sum Average redundant would come once a region.
_CLASS_LOGGER = f"{__name__}.silent"
logging.getLogger(_CLASS_LOGGER).setLevel(logging.CRITICAL + 1)

_PERCENTS = (10, 25, 75, 90)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What the feature classes are told about a masked image."""

    bin_width: float
    """Width of a grey-level bin, in the image's unit."""
    spacing_mm: tuple[float, float, float]
    """Distance between voxels along columns, rows and slices."""
    voxel_array_shift: float = 0.0
    """Added to grey levels in Energy, Total Energy and Root Mean Squared."""


class _FeatureClass(Protocol):
    """The part of a pyradiomics feature class that is used here."""

    settings: dict[str, Any]
    coefficients: dict[str, Any]
    maskArray: NDArray[np.bool_]
    targetVoxelArray: NDArray[np.float64]


def features_of_arrays(
    image: NDArray[Any],
    mask: NDArray[np.bool_],
    settings: FeatureSettings,
    classes: Iterable[str] = FEATURE_CLASSES,
) -> dict[str, float]:
    """Return features of any mask, slice by slice in two dimensions (pyradiomics' `force2D`).

    Args:
        image: Grey levels, shape (D, H, W); uint8 is fastest, as each level is looked at once.
        mask: Voxels to measure, shape (D, H, W).
        settings: Bin width, spacing and shift.
        classes: Feature classes to run; `shape2D` needs a mask in a single slice.

    Returns:
        Values by `<class>_<feature>`; NaN where the class has none.

    Raises:
        ValueError: the mask is empty, or a class refuses it.
    """
    # Axis by axis: the places of all voxels of a large region take as long as a feature class.
    planes = (np.flatnonzero(mask.any(others)) for others in ((1, 2), (0, 2), (0, 1)))
    where = tuple(slice(plane.min(), plane.max() + 1) for plane in planes)
    region = _SharedRegion(image[where], mask[where], settings)
    values: dict[str, float] = {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # Empty directions and flat regions divide by zero; the classes mend what matters.
        warnings.simplefilter("ignore", RuntimeWarning)
        for feature_class in classes:
            measured = region.measured_by(feature_class)
            values |= {f"{feature_class}_{name}": float(measured[name]) for name in measured}
    return values


class _SharedRegion:
    """One crop with its binned grey levels, as the feature classes want to be given it."""

    def __init__(
        self, image: NDArray[Any], mask: NDArray[np.bool_], settings: FeatureSettings
    ) -> None:
        self.mask = mask
        self.levels = image[mask]
        self.binned = np.zeros(image.shape, dtype=np.int32)
        bins = _bins(self.levels, settings.bin_width)
        self.binned[mask] = bins
        self.grey_levels = np.flatnonzero(np.bincount(bins)).astype(np.int32)
        self.voxel_array_shift = settings.voxel_array_shift
        self.nodes: list[Any] = [
            sitk.GetImageFromArray(array) for array in (image, mask.astype(np.uint8))
        ]
        for node in self.nodes:
            node.SetSpacing(settings.spacing_mm)

    def measured_by(self, feature_class: str) -> dict[str, Any]:
        """Return the values of one feature class, by feature name."""
        instance = _sharing(feature_class)(
            *self.nodes,
            shared=self,
            force2D=True,
            force2Ddimension=0,
            label=1,
            voxelArrayShift=self.voxel_array_shift,
        )
        measured: dict[str, Any] = instance.execute()
        return measured


@cache
def _sharing(feature_class: str) -> Callable[..., Any]:
    """Return a pyradiomics class that takes its mask and bins from a `_SharedRegion`."""
    original = radiomics.getFeatureClasses()[feature_class]
    names = dict.fromkeys(NAMES_BY_CLASS[feature_class], False)
    members: dict[str, Any] = {
        "__module__": _CLASS_LOGGER,
        # The original searches the class for its features anew for each instance.
        "getFeatureNames": staticmethod(lambda: names),
        "_applyBinning": _use_shared_bins,
    }
    if feature_class != "shape2D":
        members["_initSegmentBasedCalculation"] = _use_shared_mask
    if feature_class == "firstorder":
        members |= {
            "_moment": _moment,
            "get10PercentileFeatureValue": lambda self: _percentiles(self)[10],
            "get90PercentileFeatureValue": lambda self: _percentiles(self)[90],
            "getInterquartileRangeFeatureValue": _interquartile_range,
        }
    return type(f"Shared{original.__name__}", (original,), members)


def _use_shared_mask(instance: _FeatureClass) -> None:
    instance.maskArray = instance.settings["shared"].mask


def _use_shared_bins(instance: _FeatureClass, _: object) -> NDArray[np.int32]:
    shared: _SharedRegion = instance.settings["shared"]
    instance.coefficients["grayLevels"] = shared.grey_levels
    instance.coefficients["Ng"] = int(shared.grey_levels[-1])
    return shared.binned


def _moment(
    instance: _FeatureClass, voxels: NDArray[np.float64], order: int
) -> NDArray[np.float64]:
    """Return a central moment, shape (1,), with each grey level's power taken once."""
    mean = np.nanmean(voxels)
    levels = instance.settings["shared"].levels
    powers = _by_level(lambda values: np.power(values - mean, order), levels)
    return np.asarray(np.nanmean(powers[None], 1))


def _percentiles(instance: _FeatureClass) -> dict[int, NDArray[np.float64]]:
    """Return the percentiles, each of shape (1,), from one sorting for all of them."""
    if "percentiles" not in instance.coefficients:
        values = np.nanpercentile(instance.targetVoxelArray, _PERCENTS, axis=1)
        instance.coefficients["percentiles"] = dict(zip(_PERCENTS, values, strict=True))
    found: dict[int, NDArray[np.float64]] = instance.coefficients["percentiles"]
    return found


def _interquartile_range(instance: _FeatureClass) -> NDArray[np.float64]:
    quartiles = _percentiles(instance)
    return quartiles[75] - quartiles[25]


def _bins(levels: NDArray[Any], width: float) -> NDArray[np.int_]:
    """Return bins from 1 upwards, aligned to multiples of `width`.

    The edges are those of `imageoperations.getBinEdges`.
    """
    lowest, highest = float(levels.min()), float(levels.max())
    edges = np.arange(lowest - lowest % width, highest + 2 * width, width)
    return _by_level(lambda values: np.digitize(values, edges), levels)


def _by_level(
    function: Callable[[NDArray[np.float64]], NDArray[Any]], levels: NDArray[Any]
) -> NDArray[Any]:
    """Apply an elementwise function; to 8-bit levels by a table, with the same result."""
    if levels.dtype != np.uint8:
        return function(levels.astype(np.float64))
    table = function(np.arange(256, dtype=np.float64))
    return np.asarray(table[levels])
