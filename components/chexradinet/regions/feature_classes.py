"""pyradiomics' feature classes on one crop, binned once: the only module that imports them.

`RadiomicsFeatureExtractor.execute()` spends most of its time on image bookkeeping, and on binning
again and raising the same grey levels to the same powers for each feature. Here a region is cut out
and binned once and handed to all classes, as arrays; first-order features of 8-bit images and the
sums along the GLCM's diagonals are taken by table. What is added up, and in which order, stays
theirs, so the values do too, to the last bit (a test holds them to `execute()`).

Source: van Griethuysen et al. 2017, Cancer Research 77(21), e104-e107; pyradiomics 3.0.1.
"""

import cmath
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import radiomics
import SimpleITK as sitk
from numpy.typing import NDArray
from radiomics.base import RadiomicsFeaturesBase

from chexradinet.regions import FEATURE_CLASSES, NAMES_BY_CLASS

# The classes log under the name of the module they are defined in. Ours are defined here and
# silent, so pyradiomics' own loggers stay as they are: the warning that a symmetrical GLCM makes
# Sum Average redundant would come once per region.
_CLASS_LOGGER = f"{__name__}.silent"
logging.getLogger(_CLASS_LOGGER).setLevel(logging.CRITICAL + 1)

_PERCENTS = (10, 25, 75, 90)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What the feature classes know of a masked image."""

    bin_width: float
    """Width of a grey-level bin, in the image's unit."""
    spacing_mm: tuple[float, float, float]
    """Distance between voxels along columns, rows and slices."""
    voxel_array_shift: float = 0.0
    """Added to grey levels in Energy, Total Energy and Root Mean Squared."""


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
        Values by `<class>_<feature>`; NaN if the class has none.

    Raises:
        ValueError: the mask is empty, or a class refuses it.
    """
    if not mask.all():
        # Axis by axis: the places of all voxels of a large region take as long as a feature class.
        planes = (np.flatnonzero(mask.any(others)) for others in ((1, 2), (0, 2), (0, 1)))
        where = tuple(slice(plane.min(), plane.max() + 1) for plane in planes)
        image, mask = image[where], mask[where]
    region = _SharedRegion(image, mask, settings)
    values: dict[str, float] = {}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # Empty directions and flat regions divide by zero; the classes repair what matters.
        warnings.simplefilter("ignore", RuntimeWarning)
        for feature_class in classes:
            measured = region.measured_by(feature_class)
            values |= {f"{feature_class}_{name}": float(measured[name]) for name in measured}
    return values


class _SharedRegion:
    """One crop with its binned grey levels; it takes the place of a SimpleITK image as well."""

    def __init__(
        self, image: NDArray[Any], mask: NDArray[np.bool_], settings: FeatureSettings
    ) -> None:
        self.image, self.mask, self.settings = image, mask, settings
        self.levels = image[mask]
        self.binned = np.zeros(image.shape, dtype=np.int32)
        bins = _bins(self.levels, settings.bin_width)
        self.binned[mask] = bins
        counts = np.bincount(bins)
        self.grey_levels = np.flatnonzero(counts).astype(np.int32)
        self.bin_counts = counts[self.grey_levels]

    def GetSpacing(self) -> tuple[float, float, float]:
        """Return the distance between voxels."""
        return self.settings.spacing_mm

    def measured_by(self, feature_class: str) -> dict[str, Any]:
        """Return the values of one feature class, by feature name."""
        if feature_class == "firstorder" and self.levels.dtype == np.uint8:
            return _first_order(self)
        nodes: list[Any] = [self, self]
        if feature_class == "shape2D":
            arrays = (self.image, self.mask.astype(np.uint8))
            nodes = [sitk.GetImageFromArray(array) for array in arrays]
            for node in nodes:
                node.SetSpacing(self.settings.spacing_mm)
        instance = _sharing(feature_class)(
            *nodes,
            force2D=True,
            force2Ddimension=0,
            label=1,
            voxelArrayShift=self.settings.voxel_array_shift,
        )
        measured: dict[str, Any] = instance.execute()
        return measured


class _Shared(RadiomicsFeaturesBase):  # type: ignore[misc]
    """Stands between a feature class and its base: mask and bins come from a `_SharedRegion`."""

    def __init__(self, region: _SharedRegion, _: object, **settings: Any) -> None:  # noqa: ANN401
        self.logger = logging.getLogger(_CLASS_LOGGER)
        self.settings, self.label, self.voxelBased = settings, 1, False
        self.coefficients: dict[str, Any] = {}
        self.enabledFeatures: dict[str, bool] = {}
        self.featureValues: dict[str, Any] = {}
        self.featureNames = self.getFeatureNames()
        self.inputImage = self.region = region
        self.imageArray, self.maskArray = region.image, region.mask

    def _applyBinning(self, _: object) -> NDArray[np.int32]:
        self.coefficients["grayLevels"] = self.region.grey_levels
        self.coefficients["Ng"] = int(self.region.grey_levels[-1])
        return self.region.binned


def _sum(values: Any, axis: Any = None, keepdims: bool = False) -> Any:  # noqa: ANN401
    add: Any = np.add
    return add.reduce(values, axis, None, None, keepdims)


def _nanmean(values: NDArray[np.float64], axis: int) -> Any:  # noqa: ANN401
    total = np.add.reduce(values, axis)
    # One matrix at a time, so there is one mean.
    if cmath.isnan(total.item()):
        return np.nanmean(values, axis)
    return total / values.size


_QUICK_NUMPY = SimpleNamespace(**{**vars(np), "sum": _sum, "nanmean": _nanmean})
"""numpy, with less around the two functions that the features call most, and equal results."""


def _quickened(method: FunctionType) -> FunctionType:
    """Return a copy of a pyradiomics method that computes with `_QUICK_NUMPY`."""
    names = {**method.__globals__, "numpy": _QUICK_NUMPY}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__)


@cache
def _sharing(feature_class: str) -> Callable[..., Any]:
    """Return a pyradiomics class that takes its mask and bins from a `_SharedRegion`."""
    original = radiomics.getFeatureClasses()[feature_class]
    names = dict.fromkeys(NAMES_BY_CLASS[feature_class], False)
    members: dict[str, Any] = {
        "__module__": _CLASS_LOGGER,
        # The original searches the class for its features again for each instance.
        "getFeatureNames": staticmethod(lambda: names),
    }
    bases: tuple[type, ...] = (original,) if feature_class == "shape2D" else (original, _Shared)
    if feature_class not in ("shape2D", "firstorder"):
        methods = ["_calculateMatrix", "_calculateCoefficients"]
        methods += [f"get{name}FeatureValue" for name in names]
        members |= {
            name: _quickened(vars(original)[name]) for name in methods if name in vars(original)
        }
    if feature_class == "glcm":
        members["_calculateCoefficients"] = _glcm_coefficients
        members["getMCCFeatureValue"] = _maximal_correlation
        members["getClusterShadeFeatureValue"] = _cluster(3)
        members["getClusterProminenceFeatureValue"] = _cluster(4)
    return type(f"Shared{original.__name__}", bases, members)


def _glcm_coefficients(self: Any) -> None:  # noqa: ANN401
    """Do what the original does, with one pass for all diagonals of a matrix."""
    levels = self.coefficients["grayLevels"]
    number, highest = len(levels), self.coefficients["Ng"]
    i, j = np.meshgrid(levels.astype(float), levels.astype(float), indexing="ij", sparse=True)
    matrix, eps = self.P_glcm, np.spacing(1)
    sums = (levels[:, None] + levels[None, :]).ravel() - 2
    differences = np.abs(levels[:, None] - levels[None, :]).ravel()
    cells = matrix.reshape(number * number, -1)
    self.coefficients |= {
        "eps": eps,
        "i": i,
        "j": j,
        "kValuesSum": np.arange(2, highest * 2 + 1, dtype=float),
        "kValuesDiff": np.arange(0, highest, dtype=float),
        "px": matrix.sum(2, keepdims=True),
        "py": matrix.sum(1, keepdims=True),
        "ux": np.sum(i[None, :, :, None] * matrix, (1, 2), keepdims=True),
        "uy": np.sum(j[None, :, :, None] * matrix, (1, 2), keepdims=True),
        "pxAddy": _summed_by(sums, cells, 2 * highest - 1),
        "pxSuby": _summed_by(differences, cells, highest),
        "HXY": (-1) * np.sum((matrix * np.log2(matrix + eps)), (1, 2)),
    }


def _maximal_correlation(self: Any) -> Any:  # noqa: ANN401
    """Do what the original does, angle by angle; products are added up in its order."""
    cells = np.ascontiguousarray(self.P_glcm[0].transpose(2, 1, 0))  # (angles, k, i)
    px, py, eps = (self.coefficients[name] for name in ("px", "py", "eps"))
    found = []
    for of_angle, x, y in zip(cells, px[0, :, 0].T, py[0, 0].T, strict=True):
        products = of_angle[:, :, None] * of_angle[:, None]
        products /= (x * y[:, None] + eps)[:, :, None]
        found.append(np.add.reduce(products, 0))
    correlations = np.linalg.eigvals(np.stack(found))
    correlations.sort()
    if correlations.shape[1] < 2:
        return 1
    return _nanmean(np.sqrt(correlations[:, -2])[None], 1).real


def _cluster(order: int) -> Callable[[Any], Any]:
    """Return what takes the place of Cluster Shade (3) or Prominence (4).

    The power of each sum of two grey levels is taken once, not once per cell.
    """

    def feature(self: Any) -> Any:  # noqa: ANN401
        ux, uy = (self.coefficients[name][0, 0] for name in ("ux", "uy"))  # (1, angles)
        sums = np.arange(2 * self.coefficients["Ng"] + 1)[:, None]
        levels = self.coefficients["grayLevels"]
        powers = (((sums - ux) - uy) ** order)[levels[:, None] + levels]
        return _nanmean(_sum(self.P_glcm * powers[None], (1, 2)), 1)

    return feature


def _summed_by(
    bins: NDArray[np.int32], cells: NDArray[np.float64], number: int
) -> NDArray[np.float64]:
    """Return for each bin and angle the sum of its cells, in their order, shape (1, bins, angles).

    Cells in the order of a matrix, one after another, is how the original adds them up as well.
    """
    columns = [np.bincount(bins, angle, number) for angle in cells.T]
    return np.asarray(np.stack(columns, axis=-1)[None], dtype=np.float64)


def _first_order(region: _SharedRegion) -> dict[str, Any]:
    """Return the first-order features of 8-bit grey levels.

    A level's power is taken once, and percentiles are read from the histogram; sums run over all
    voxels in their order, as the original's do.
    """
    levels, table = region.levels, np.arange(256, dtype=np.float64)
    number = len(levels)

    def mean_of(by_level: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray([np.add.reduce(by_level[levels]) / number])

    cumulative = np.cumsum(np.bincount(levels, minlength=256))
    p10, p25, p75, p90 = (_percentile(cumulative, percent) for percent in _PERCENTS)
    middle = np.searchsorted(cumulative, [(number - 1) // 2, number // 2], side="right")
    low, high = float(levels.min()), float(levels.max())
    mean = mean_of(table)[0]
    second, third, fourth = (mean_of(np.power(table - mean, order)) for order in (2, 3, 4))
    scale = np.where(second == 0, 1.0, second)
    kept = (table >= p10) & (table <= p90)
    inner = np.add.reduce(np.where(kept, table, 0.0)[levels]) / np.count_nonzero(kept[levels])
    deviation = np.add.reduce(np.where(kept, np.abs(table - inner), 0.0)[levels])
    shifted = table + region.settings.voxel_array_shift
    energy = np.add.reduce((shifted**2)[levels])
    share = region.bin_counts.astype(float)[None] / float(number)
    return {
        "10Percentile": p10,
        "90Percentile": p90,
        "Energy": energy,
        "Entropy": (-1.0 * np.sum(share * np.log2(share + np.spacing(1)), 1))[0],
        "InterquartileRange": p75 - p25,
        "Kurtosis": (fourth / scale**2.0)[0],
        "Maximum": high,
        "MeanAbsoluteDeviation": mean_of(np.abs(table - mean))[0],
        "Mean": mean,
        "Median": (middle[0] + middle[1]) / 2,
        "Minimum": low,
        "Range": high - low,
        "RobustMeanAbsoluteDeviation": deviation / np.count_nonzero(kept[levels]),
        "RootMeanSquared": np.sqrt(energy / number),
        "Skewness": (third / scale**1.5)[0],
        "TotalEnergy": energy * np.multiply.reduce(region.settings.spacing_mm),
        "Uniformity": np.sum(share**2, 1)[0],
        "Variance": np.sqrt(second[0]) ** 2,
    }


def _percentile(cumulative: NDArray[np.int_], percent: int) -> float:
    """Return a percentile by linear interpolation, rounded as numpy's own rounds."""
    position = (int(cumulative[-1]) - 1) * (percent / 100)
    before = math.floor(position)
    share = position - before
    places = [before, min(before + 1, int(cumulative[-1]) - 1)]
    low, high = (float(level) for level in np.searchsorted(cumulative, places, side="right"))
    step = high - low
    return high - step * (1 - share) if share >= 0.5 else low + step * share


def _bins(levels: NDArray[Any], width: float) -> NDArray[np.int_]:
    """Return bins from 1 upwards, aligned to multiples of `width`.

    The edges are those of `imageoperations.getBinEdges`.
    """
    lowest, highest = float(levels.min()), float(levels.max())
    edges = np.arange(lowest - lowest % width, highest + 2 * width, width)
    if levels.dtype != np.uint8:
        return np.digitize(levels.astype(np.float64), edges)
    by_level = np.digitize(np.arange(256, dtype=np.float64), edges)
    return np.asarray(by_level[levels])
