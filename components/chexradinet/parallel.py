"""Work on a pool of processes: in order, with bounded memory, whatever happens to a process.

The pool spawns: a forked copy of a process that runs threads, torch's among them, can hang.
"""

import ctypes
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Generic, TypeVar

from chexradinet.errors import WorkerError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_ARRAY_BYTES = 128 << 20
KEPT_BYTES = 512 << 20
"""Most freed memory that a process keeps for itself."""
BATCHES_AHEAD = 3
"""Batches a worker that are read ahead."""

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Item, Result]):
    """What the processes do."""

    work: Callable[[Item], Result]
    """Of one item; picklable, so of a module's top level. What it raises is raised."""
    crashed: Callable[[], Result]
    """What comes of an item that kills the process it is worked on in."""
    batch_size: int
    """Items a process is given at once."""


def in_processes(
    items: Iterable[Item], job: Job[Item, Result], num_workers: int
) -> Iterator[Result]:
    """Yield the result of each item, in order.

    At most `BATCHES_AHEAD` batches a worker are read ahead. A process that dies (killed for memory,
    a crash in compiled code) costs its batch one more attempt, item by item; the item that kills
    its process again comes to what `job.crashed` gives.

    Args:
        items: Read once.
        job: What is done with them.
        num_workers: Processes, at least 1.

    Raises:
        WorkerError: no process can be started.
    """
    pool = _Pool(job, num_workers)
    try:
        waiting: deque[tuple[list[Item], Future[list[Result]]]] = deque()
        for batch in batches(items, job.batch_size):
            waiting.append((batch, pool.submit(batch)))
            if len(waiting) >= num_workers * BATCHES_AHEAD:
                yield from pool.results(*waiting.popleft())
        while waiting:
            yield from pool.results(*waiting.popleft())
    finally:
        pool.close()


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of at most so many items."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next item of the same size.

    Whoever decodes allocates and frees the same megabytes for each file. Left alone, glibc gives
    them back and has them mapped anew, with a page fault for each 4 KiB: that took up to as long as
    decoding (`python -m benchmarks.ingest_memory`). Other C libraries have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ARRAY_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def _work_on(work: Callable[[Item], Result], batch: Sequence[Item]) -> list[Result]:
    return [work(item) for item in batch]


class _Pool(Generic[Item, Result]):
    """Processes that are replaced when one of them dies."""

    def __init__(self, job: Job[Item, Result], num_workers: int) -> None:
        self._job = job
        self._num_workers = num_workers
        self._executor = _started(num_workers)

    def submit(self, batch: Sequence[Item]) -> Future[list[Result]]:
        """Queue a batch, also when a process has just died."""
        try:
            return self._executor.submit(_work_on, self._job.work, batch)
        except BrokenProcessPool:
            self.close()
            self._executor = _started(self._num_workers)
            return self._executor.submit(_work_on, self._job.work, batch)

    def results(self, batch: Sequence[Item], future: Future[list[Result]]) -> list[Result]:
        """Wait for a batch; when a process died meanwhile, work on its items one by one."""
        try:
            return future.result()
        except BrokenProcessPool:
            _logger.warning("a worker process died; %d items are tried singly", len(batch))
            return self._singly(batch)

    def close(self) -> None:
        """Drop what is queued and wait for the processes to end."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _singly(self, batch: Sequence[Item]) -> list[Result]:
        results: list[Result] = []
        executor = _started(1)
        try:
            _require_start(executor)
            for item in batch:
                try:
                    results += executor.submit(_work_on, self._job.work, [item]).result()
                except BrokenProcessPool:
                    _logger.warning("an item killed its worker process again; it is given up")
                    results.append(self._job.crashed())
                    executor.shutdown()
                    executor = _started(1)
        finally:
            executor.shutdown()
        return results


def _started(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )


def _require_start(executor: ProcessPoolExecutor) -> None:
    """Tell processes that cannot start from items that kill them."""
    try:
        executor.submit(int).result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "worker processes end before they do anything; a script that calls this must keep its "
            'own work under `if __name__ == "__main__":`, they need memory, or set num_workers to 1'
        ) from error


def _prepare_worker() -> None:
    # Ctrl-C reaches the whole process group; only the parent answers it, by closing the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()


def _end_with_parent() -> None:
    # A killed parent closes no queue: without this its workers would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
