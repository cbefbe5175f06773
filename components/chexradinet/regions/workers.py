"""Measuring crops on a pool of processes, in order, whatever happens to a process.

The pool spawns its processes: a forked copy of a process that runs torch's threads can hang.
"""

import itertools
import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import require
from chexradinet.errors import WorkerError
from chexradinet.records import FeatureStatus
from chexradinet.regions.tables import FeatureRow, rejected_row

Crop = NDArray[np.uint8]
"""Pixels of one region, shape (h, w)."""
Measure = Callable[[Crop], FeatureRow]
"""What a worker does with a crop; it is pickled, so it lives at the top level of a module."""

BATCH_SIZE = 32
"""Regions a worker is given at once."""

_BATCHES_AHEAD = 2
_logger = logging.getLogger(__name__)


def measure_in_processes(
    crops: Iterable[Crop | None], measure: Measure, num_workers: int
) -> Iterator[FeatureRow]:
    """Yield one row a crop, in order; `NO_REGION` where there is no crop.

    At most `_BATCHES_AHEAD` batches a worker are read ahead, so memory does not grow with the
    number of crops. A process that dies (killed for memory, a crash in compiled code) costs its
    batch one more attempt, crop by crop; the crop that kills its process again becomes `FAILED`.

    Args:
        crops: Pixels of each region, read once.
        measure: Picklable; what it raises is raised here.
        num_workers: Processes; with 1 everything runs in this one.

    Raises:
        ConfigError: `num_workers` is below 1.
        WorkerError: no process can be started.
    """
    require(num_workers >= 1, "num_workers", num_workers, "at least 1")
    if num_workers == 1:
        yield from itertools.chain.from_iterable(
            _measured(batch, measure) for batch in _batches(crops)
        )
        return
    pool = _Pool(measure, num_workers)
    try:
        waiting: deque[tuple[list[Crop | None], Future[list[FeatureRow]]]] = deque()
        for batch in _batches(crops):
            waiting.append((batch, pool.submit(batch)))
            if len(waiting) >= num_workers * _BATCHES_AHEAD:
                yield from pool.result(*waiting.popleft())
        while waiting:
            yield from pool.result(*waiting.popleft())
    finally:
        pool.close()


def _batches(crops: Iterable[Crop | None]) -> Iterator[list[Crop | None]]:
    source = iter(crops)
    while batch := list(itertools.islice(source, BATCH_SIZE)):
        yield batch


def _measured(batch: Sequence[Crop | None], measure: Measure) -> list[FeatureRow]:
    return [
        rejected_row(FeatureStatus.NO_REGION) if crop is None else measure(crop) for crop in batch
    ]


def _ready() -> None:
    """Do nothing: what a process can do that has started."""


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the whole process group; only the parent answers it, by closing the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Pool:
    """Processes that are replaced when one of them dies."""

    def __init__(self, measure: Measure, num_workers: int) -> None:
        self._measure = measure
        self._num_workers = num_workers
        self._executor = _started(num_workers)

    def submit(self, batch: list[Crop | None]) -> Future[list[FeatureRow]]:
        """Queue a batch, also when a process has just died."""
        try:
            return self._executor.submit(_measured, batch, self._measure)
        except BrokenProcessPool:
            self.close()
            self._executor = _started(self._num_workers)
            return self._executor.submit(_measured, batch, self._measure)

    def result(
        self, batch: list[Crop | None], future: Future[list[FeatureRow]]
    ) -> list[FeatureRow]:
        """Wait for a batch; when a process died meanwhile, measure its crops one by one."""
        try:
            return future.result()
        except BrokenProcessPool:
            _logger.warning("a radiomics worker died; measuring %d regions singly", len(batch))
            return self._singly(batch)

    def close(self) -> None:
        """Drop what is queued and wait for the processes to end."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _singly(self, batch: list[Crop | None]) -> list[FeatureRow]:
        rows: list[FeatureRow] = []
        executor = _started(1)
        try:
            for crop in batch:
                try:
                    rows += executor.submit(_measured, [crop], self._measure).result()
                except BrokenProcessPool:
                    _logger.warning("a region killed its radiomics worker; marked as failed")
                    rows.append(rejected_row(FeatureStatus.FAILED))
                    executor.shutdown(wait=True)
                    executor = _started(1)
        finally:
            executor.shutdown(wait=True)
        return rows


def _started(num_workers: int) -> ProcessPoolExecutor:
    """Return a pool that has proved that its processes can work.

    Raises:
        WorkerError: they die before they do anything, so that no region could be blamed for it.
    """
    executor = ProcessPoolExecutor(
        max_workers=num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ignore_interrupts,
    )
    try:
        executor.submit(_ready).result()
    except BrokenProcessPool as error:
        executor.shutdown(wait=True)
        raise WorkerError(
            f"none of {num_workers} radiomics processes could start; a script that starts them "
            'needs `if __name__ == "__main__":`, and they need memory: use num_workers=1 else'
        ) from error
    return executor
