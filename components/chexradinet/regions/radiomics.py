"""Region to 102 radiomics features, with a status instead of an exception for bad pixels.

Features of any unit and magnitude are brought to one scale for training: signed logarithm, then
distance from the median in robust standard deviations, clipped. Without it the contrastive term
sees little but the features that are large by unit: raw values run from 1e-4 to 1e8.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chexradinet.config import RadiomicsConfig, require
from chexradinet.errors import MismatchError, TrainingError
from chexradinet.parallel import Job, in_processes
from chexradinet.records import Box, FeatureStatus, RegionStatus
from chexradinet.regions import (
    BOX_COLUMNS,
    FEATURE_CLASSES,
    FEATURE_NAMES,
    FeatureRow,
    features_table,
    rejected_row,
)

BORDER_PX = 1
"""Outer pixels a box never covers, as pyradiomics wants background around a mask."""

MIN_SIDE_PX = 2
"""Shortest side that has texture; `execute()` refuses a line or a point as well."""
Crop = NDArray[np.uint8]
"""Pixels of one region, shape (h, w)."""
Measure = Callable[[Crop], FeatureRow]
"""What a worker does with a crop; it is pickled, so it lives at the top level of a module."""

BATCH_SIZE = 32
"""Regions a worker is given at once."""
PART_SIZE = 1024
"""Regions whose features are held at once."""

CLIP = 5.0
"""Largest normalised value, on either side of 0."""

NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""

_RELATIVE_ROUNDING = 1e-9

Classes = tuple[str, ...]
_GREY_CLASSES: Classes = tuple(name for name in FEATURE_CLASSES if name != "shape2D")
_REFUSALS = (ValueError, RuntimeError, IndexError, ArithmeticError, MemoryError)


def features_if_installed(crop: Crop, config: RadiomicsConfig) -> FeatureRow:
    """Return the features of a crop, or the status of a host without pyradiomics."""
    if not is_installed():
        return rejected_row(FeatureStatus.NOT_INSTALLED)
    return features_of_crop(crop, config)


def is_installed() -> bool:
    """Tell whether pyradiomics is there."""
    return find_spec("radiomics") is not None


def crop_of(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Return the pixels of a box, rounded outward and clipped to leave `BORDER_PX` free.

    A side of the result is 0 if the box lies outside.
    """
    height, width = image.shape
    top, left = max(math.floor(box.top), BORDER_PX), max(math.floor(box.left), BORDER_PX)
    bottom = min(math.ceil(box.bottom), height - BORDER_PX)
    right = min(math.ceil(box.right), width - BORDER_PX)
    return image[top : max(bottom, top), left : max(right, left)]


def features_of_crop(crop: NDArray[np.uint8], config: RadiomicsConfig) -> FeatureRow:
    """Return the features of a whole rectangle of pixels, shape (h, w); nothing is raised."""
    if min(crop.shape) < MIN_SIDE_PX:
        return rejected_row(FeatureStatus.FAILED)
    mask = np.ones((1, *crop.shape), bool)
    try:
        measured = _measured(crop[None], mask, config, _GREY_CLASSES)
        measured |= _rectangle_shape(*crop.shape, config)
    except _REFUSALS:
        return rejected_row(FeatureStatus.FAILED)
    values = np.array([measured[name] for name in FEATURE_NAMES], dtype=np.float64)
    if not np.isfinite(values).all():
        return rejected_row(FeatureStatus.NOT_FINITE)
    return FeatureRow(FeatureStatus.OK, values)


def extract_features(
    images: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    regions: pd.DataFrame,
    rows: NDArray[np.int64],
    config: RadiomicsConfig,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[pd.DataFrame]:
    """Return the table of features of many regions, in the order of these and part by part.

    Args:
        images: Returns the X-rays of some data set rows, shape (n, H, W); asked for at most
            `BATCH_SIZE` at a time, and only for those that have a region.
        regions: `REGION_COLUMNS`, n rows.
        rows: Data set row of the X-ray of each region, shape (n,).
        config: Bin width and nominal spacing.
        num_workers: Processes; with 1 everything runs in this one.
        progress: Called with the number of regions done and of all.

    Raises:
        MismatchError: `regions` and `rows` differ in length.
        WorkerError: no process can be started.
    """
    if len(rows) != len(regions):
        raise MismatchError(
            f"{len(regions)} regions and {len(rows)} data set rows were given; give one row a "
            "region, found by its image_id in the data set that the regions were made from"
        )
    measured = measure_in_processes(
        _crops(images, regions, rows), partial(features_if_installed, config=config), num_workers
    )
    return _tables(regions["image_id"].tolist(), measured, progress)


def _tables(
    image_ids: list[str],
    measured: Iterator[FeatureRow],
    progress: Callable[[int, int], None] | None,
) -> Iterator[pd.DataFrame]:
    """Yield tables of `PART_SIZE` regions; of none, one table without rows."""
    for start in range(0, max(len(image_ids), 1), PART_SIZE):
        part = image_ids[start : start + PART_SIZE]
        statuses: list[str] = []
        values = np.full((len(part), len(FEATURE_NAMES)), np.nan)
        for row in islice(measured, len(part)):
            values[len(statuses)] = row.values
            statuses.append(row.status.value)
            if progress is not None:
                progress(start + len(statuses), len(image_ids))
        yield features_table(part, statuses, values)


def measure_in_processes(
    crops: Iterable[Crop | None], measure: Measure, num_workers: int
) -> Iterator[FeatureRow]:
    """Yield one row per crop, in order; `NO_REGION` if there is no crop.

    Args:
        crops: Pixels of each region, read once.
        measure: Picklable; what it raises is raised here.
        num_workers: Processes; with 1 everything runs in this one. Elsewhere, a crop that kills its
            process becomes `FAILED`.

    Raises:
        ConfigError: `num_workers` is below 1.
        WorkerError: no process can be started.
    """
    require(num_workers >= 1, "num_workers", num_workers, "at least 1")
    work = partial(_row_of, measure)
    if num_workers == 1:
        yield from map(work, crops)
        return
    job = Job(work=work, failed=lambda _: rejected_row(FeatureStatus.FAILED))
    yield from in_processes(crops, job, num_workers)


def _row_of(measure: Measure, crop: Crop | None) -> FeatureRow:
    return rejected_row(FeatureStatus.NO_REGION) if crop is None else measure(crop)


def _crops(
    images: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    regions: pd.DataFrame,
    rows: NDArray[np.int64],
) -> Iterator[NDArray[np.uint8] | None]:
    """Yield the pixels of each region in order, None for those without a box."""
    sides = regions[list(BOX_COLUMNS)].to_numpy(dtype=np.float64)
    found = (regions["status"] == RegionStatus.OK.value).to_numpy()
    for start in range(0, len(regions), BATCH_SIZE):
        batch = np.arange(start, min(start + BATCH_SIZE, len(regions)))
        wanted, place = np.unique(rows[batch][found[batch]], return_inverse=True)
        pixels = images(wanted) if len(wanted) else None
        places = iter(place)
        for index in batch:
            if pixels is None or not found[index]:
                yield None
            else:
                # A copy, so that a waiting crop does not keep its whole batch in memory.
                yield crop_of(pixels[next(places)], Box(*sides[index])).copy()


def _measured(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], config: RadiomicsConfig, classes: Classes
) -> dict[str, Any]:
    # Here, so that scoring loads where pyradiomics is absent.
    from chexradinet.regions.feature_classes import FeatureSettings, features_of_arrays

    spacing_mm = (config.spacing_mm, config.spacing_mm, 1.0)
    settings = FeatureSettings(bin_width=config.bin_width, spacing_mm=spacing_mm)
    return features_of_arrays(image, mask, settings, classes)


@lru_cache(maxsize=4096)
def _rectangle_shape(height: int, width: int, config: RadiomicsConfig) -> dict[str, Any]:
    """Return the shape features of a full rectangle: they depend on nothing but its sides."""
    mask = np.ones((1, height, width), bool)
    return _measured(mask.astype(np.uint8), mask, config, ("shape2D",))


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
