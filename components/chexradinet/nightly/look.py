"""Where a model looked in a batch, and the radiomics of what it flags.

Radiomics are measured in this process, or in processes of their own while the next batch passes the
network: beside an accelerator they would take longer than it does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chexradinet.config import RadiomicsConfig
from chexradinet.model.inference import Predictions
from chexradinet.nightly.model import NightModel
from chexradinet.nightly.records import XRay
from chexradinet.parallel import Job, Pool, available_processors
from chexradinet.records import FeatureStatus, Region
from chexradinet.regions import FeatureRow, rejected_row
from chexradinet.regions.extract import extract_region
from chexradinet.regions.radiomics import Crop, crop_of, features_if_installed

Measured = Callable[[], FeatureRow]
"""Gives the features of a region, and waits for them if need be."""
Measure = Callable[[Crop], Measured]
"""Starts to measure the pixels of a region."""

_SHARE_OF_PROCESSORS = 4
"""Beside an accelerator, one processor in so many measures; most of the others decode."""


class Look(NamedTuple):
    """What one map says about one finding."""

    region: Region
    """In model pixels."""
    flagged: bool | None
    """None for a finding without an operating threshold."""
    features: Measured | None
    """Radiomics of the region; None unless flagged."""


def num_measurers(asked: int, device: str) -> int:
    """Return how many processes measure radiomics; 1 measures in the process that scores."""
    return asked or (1 if device == "cpu" else available_processors() // _SHARE_OF_PROCESSORS or 1)


@contextmanager
def measuring(config: RadiomicsConfig, num_workers: int) -> Iterator[Measure]:
    """Give what measures regions, at once or in processes that end with the block."""
    work = partial(features_if_installed, config=config)
    if num_workers == 1:
        yield lambda crop: partial(_same, work(crop))
        return
    pool = Pool(Job(work=work, failed=_failed), num_workers)
    try:
        # A copy, so that a waiting region does not keep its X-ray in memory.
        yield lambda crop: pool.submit(crop.copy()).result
    finally:
        pool.close()


def looks_of(
    model: NightModel,
    xrays: Sequence[XRay],
    found: Predictions,
    probabilities: npt.NDArray[np.float64],
    measure: Measure,
) -> list[list[Look]]:
    """Return where the model looked, for each X-ray and finding, in the model's order."""
    fitted: Mapping[str, Any] = (model.info.calibration or {})["findings"]
    thresholds = [fitted[finding]["threshold"] for finding in model.findings]
    return [
        [
            _look(model, xray, found.maps[row, column], measure, flagged)
            for column, flagged in enumerate(
                None if threshold is None else bool(probability >= threshold)
                for threshold, probability in zip(thresholds, probabilities[row], strict=True)
            )
        ]
        for row, xray in enumerate(xrays)
    ]


def _look(
    model: NightModel,
    xray: XRay,
    heatmap: npt.NDArray[np.float32],
    measure: Measure,
    flagged: bool | None,
) -> Look:
    region = extract_region(heatmap, xray.pixels.shape[0], model.settings.regions)
    if not flagged:
        return Look(region, flagged, None)
    if region.box is None:
        return Look(region, flagged, partial(rejected_row, FeatureStatus.NO_REGION))
    return Look(region, flagged, measure(crop_of(xray.pixels, region.box)))


def _same(row: FeatureRow) -> FeatureRow:
    return row


def _failed(_: object) -> FeatureRow:
    return rejected_row(FeatureStatus.FAILED)
