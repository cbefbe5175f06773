"""Files to model pixels on a pool of processes: in order, with bounded memory, whatever happens.

Processes, because some decoders are Python and because compiled ones can crash: a file that kills
the process it is decoded in costs itself, not the run. What is decoded in this process takes the
run with it: everything where one worker is asked for, and pictures where others are not worth
while. DICOM files, whose many codecs are the likely ones to crash, never are by default.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from chexradinet.errors import RejectedImageError
from chexradinet.parallel import KEPT_BYTES, Job, in_processes, keep_freed_memory
from chexradinet.processors import workers_for
from chexradinet.records import RejectReason

FEW_FILES = 64
"""So many are decoded in this process, to see how long a file takes."""
START_S = 5.0
"""Less work than this is done in this process: starting others would take as long."""

_WORKER_BYTES, _OWN_BYTES = KEPT_BYTES + (256 << 20), 1 << 30
"""Most that a worker holds on 3000x2500 files of 16 bits (measured: 230 MiB, beside what it keeps
freed); and what this process needs beside them."""
_BATCH_SIZE = 8

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
    keep_freed_memory()
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
    files: Sequence[Item], decode: Callable[[Item], Result], num_workers: int
) -> Iterator[Result | RejectedImageError]:
    job: Job[Item, Result | RejectedImageError] = Job(
        work=decode, crashed=_crashed, batch_size=_BATCH_SIZE
    )
    yield from in_processes(files, job, num_workers)


def _crashed() -> RejectedImageError:
    return RejectedImageError(RejectReason.UNREADABLE, "the decoder crashed on it")
