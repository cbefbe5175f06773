"""Measuring crops on a pool of processes, in order, whatever happens to a process."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import require
from chexradinet.parallel import Job, in_processes
from chexradinet.records import FeatureStatus
from chexradinet.regions.tables import FeatureRow, rejected_row

Crop = NDArray[np.uint8]
"""Pixels of one region, shape (h, w)."""
Measure = Callable[[Crop], FeatureRow]
"""What a worker does with a crop; it is pickled, so it lives at the top level of a module."""

BATCH_SIZE = 32
"""Regions a worker is given at once."""


def measure_in_processes(
    crops: Iterable[Crop | None], measure: Measure, num_workers: int
) -> Iterator[FeatureRow]:
    """Yield one row a crop, in order; `NO_REGION` where there is no crop.

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
    work = partial(_measured, measure)
    if num_workers == 1:
        yield from map(work, crops)
        return
    job = Job(work=work, crashed=_failed, batch_size=BATCH_SIZE)
    yield from in_processes(crops, job, num_workers)


def _measured(measure: Measure, crop: Crop | None) -> FeatureRow:
    return rejected_row(FeatureStatus.NO_REGION) if crop is None else measure(crop)


def _failed() -> FeatureRow:
    return rejected_row(FeatureStatus.FAILED)
