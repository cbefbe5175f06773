"""Files to model pixels on a pool of processes: in order, with bounded memory, whatever happens.

Processes, because some decoders are Python and because compiled ones can crash: a file that kills
the process it is decoded in costs itself, not the run. What is decoded in this process takes the
run with it: everything where one worker is asked for, and pictures where others are not worth
while. DICOM files, whose many codecs are the likely ones to crash, never are by default. The pool
spawns: a forked copy of a process that runs threads can hang.
"""

import ctypes
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Generic, TypeVar

from chexradinet.errors import RejectedImageError, WorkerError
from chexradinet.processors import workers_for
from chexradinet.records import RejectReason

FEW_FILES = 64
"""So many are decoded in this process, to see how long a file takes."""
START_S = 5.0
"""Less work than this is done in this process: starting others would take as long."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_ARRAY_BYTES, _KEPT_BYTES = 128 << 20, 512 << 20
_WORKER_BYTES, _OWN_BYTES = 768 << 20, 1 << 30
"""Most that a worker holds, what it keeps freed included, on 3000x2500 files of 16 bits (measured:
230 MiB beside `_KEPT_BYTES`); and what this process needs beside them."""
_BATCH_SIZE = 8
_BATCHES_AHEAD = 3
_logger = logging.getLogger(__name__)


Item = TypeVar("Item")
Result = TypeVar("Result")


def decode_in_order(
    files: Sequence[Item],
    decode: Callable[[Item], Result],
    num_workers: int,
    isolated: bool = False,
) -> Iterator[Result | RejectedImageError]:
    """Yield the outcome of each file, in order; a file that kills its process is a rejection.

    Args:
        files: What `decode` takes, such as names; a few batches a worker are decoded ahead.
        decode: Picklable, as what `decoder` returned.
        num_workers: Processes; 1 decodes in this one; 0 takes one a core, as far as memory allows,
            where it is worth while.
        isolated: With `num_workers` 0, decode nothing in this process, however little there is.

    Raises:
        WorkerError: no process can be started.
    """
    _keep_freed_memory()
    if num_workers == 0 and isolated:
        workers = 1 if len(files) <= FEW_FILES else workers_for(_WORKER_BYTES, _OWN_BYTES)
        yield from _decode_in_processes(files, decode, workers)
        return
    if num_workers == 0:
        started = time.perf_counter()
        yield from map(decode, files[:FEW_FILES])
        seconds_each = (time.perf_counter() - started) / FEW_FILES
        files = files[FEW_FILES:]
        worthwhile = seconds_each * len(files) > START_S
        num_workers = workers_for(_WORKER_BYTES, _OWN_BYTES) if worthwhile else 1
    if num_workers == 1:
        yield from map(decode, files)
    else:
        yield from _decode_in_processes(files, decode, num_workers)


def _decode_in_processes(
    files: Sequence[Item], decode: Callable[[Item], Result], workers: int
) -> Iterator[Result | RejectedImageError]:
    pool = _Pool(decode, workers)
    try:
        waiting: deque[tuple[list[Item], Future[list[Result]]]] = deque()
        for batch in _batches(files):
            waiting.append((batch, pool.submit(batch)))
            if len(waiting) >= workers * _BATCHES_AHEAD:
                yield from pool.outcomes(*waiting.popleft())
        while waiting:
            yield from pool.outcomes(*waiting.popleft())
    finally:
        pool.close()


def _batches(files: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(files)
    while batch := list(itertools.islice(remaining, _BATCH_SIZE)):
        yield batch


def _decode_batch(decode: Callable[[Item], Result], batch: Sequence[Item]) -> list[Result]:
    return [decode(file) for file in batch]


class _Pool(Generic[Item, Result]):
    """Processes that are replaced when one of them dies."""

    def __init__(self, decode: Callable[[Item], Result], num_workers: int) -> None:
        self._decode = decode
        self._num_workers = num_workers
        self._executor = _started(num_workers)

    def submit(self, batch: Sequence[Item]) -> Future[list[Result]]:
        """Queue a batch, also when a process has just died."""
        try:
            return self._executor.submit(_decode_batch, self._decode, batch)
        except BrokenProcessPool:
            self.close()
            self._executor = _started(self._num_workers)
            return self._executor.submit(_decode_batch, self._decode, batch)

    def outcomes(
        self, batch: Sequence[Item], future: Future[list[Result]]
    ) -> list[Result | RejectedImageError]:
        """Wait for a batch; when a process died meanwhile, decode its files one by one."""
        try:
            return [*future.result()]
        except BrokenProcessPool:
            _logger.warning("a decoding process died; decoding %d files singly", len(batch))
            return self._singly(batch)

    def close(self) -> None:
        """End all processes without waiting for what they were given."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _singly(self, batch: Sequence[Item]) -> list[Result | RejectedImageError]:
        outcomes: list[Result | RejectedImageError] = []
        executor = _started(1)
        try:
            _require_start(executor)
            for file in batch:
                try:
                    outcomes.append(executor.submit(self._decode, file).result())
                except BrokenProcessPool:
                    detail = "the decoder crashed on it"
                    outcomes.append(RejectedImageError(RejectReason.UNREADABLE, detail))
                    executor.shutdown()
                    executor = _started(1)
        finally:
            executor.shutdown()
        return outcomes


def _started(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )


def _require_start(executor: ProcessPoolExecutor) -> None:
    """Tell processes that cannot start from files that kill them."""
    try:
        executor.submit(int).result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "decoding processes end before they decode anything; a script that calls this must "
            'keep its own work under `if __name__ == "__main__":`, or set num_workers to 1'
        ) from error


def _prepare_worker() -> None:
    # Ctrl-C reaches the whole process group; only the parent answers it, by closing the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    # Decoding allocates and frees the same megabytes for each file. Left alone, glibc gives them
    # back and has them mapped anew, with a page fault for each 4 KiB: that took up to as long as
    # decoding (`python -m benchmarks.ingest_memory`). Other C libraries have no such call.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ARRAY_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _end_with_parent() -> None:
    # A killed parent closes no queue: without this its workers would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
