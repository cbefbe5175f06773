"""Work on a pool of processes: in order, with bounded memory, whatever happens to a process.

Each process works on one item at a time, and a thread here waits for its answer: so a process that
dies is known to have died of its item, is replaced, and the others work on. Processes are forked
from a server that has imported what the work needs and starts no threads: a fork of a process that
runs threads, torch's among them, can hang, and a new one would import everything again.

How many there are is limited by what this machine, or the container this runs in, can hold.
`os.cpu_count` tells the node's processors, whatever a pod may use of them. Control groups tell the
limits of a container, and so do they of a systemd service.
"""

import ctypes
import logging
import math
import multiprocessing
import os
import queue
import resource
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

from chexradinet.errors import WorkerError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_ARRAY_BYTES = 128 << 20
KEPT_BYTES = 512 << 20
"""Most freed memory that a process keeps for itself."""
ITEMS_AHEAD = 24
"""Items per worker that are read ahead."""

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_MOST_LIKELY_KILLED = "1000"

_CONTROL_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")

_FORKSERVER = multiprocessing.get_context("forkserver")
_logger = logging.getLogger(__name__)
_is_worker = False

Item = TypeVar("Item")
Result = TypeVar("Result")


class Failure(Enum):
    """What became of an item that ended the process it was worked on in, twice if need be."""

    CRASHED = "it crashed the process that worked on it"
    TOO_SLOW = "it took longer than a file may take"
    KILLED = "its process was killed, most likely for the memory it took"


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Item, Result]):
    """What the processes do."""

    work: Callable[[Item], Result]
    """Work on one item; picklable, so of a module's top level. What it raises is raised."""
    failed: Callable[[Failure], Result]
    """What comes of an item that ends the process it is worked on in."""
    memory_bytes: int = 0
    """Most that a process may allocate beside what it has when it starts; 0 for no limit."""
    preload: tuple[str, ...] = ()
    """Modules that the work imports in mid-way: imported once, before there is a process."""


def in_processes(
    items: Iterable[Item], job: Job[Item, Result], num_workers: int
) -> Iterator[Result]:
    """Yield the result of each item, in order; at most `ITEMS_AHEAD` per worker are read ahead.

    An item whose process dies (killed for memory, a crash in compiled code) gets one more attempt
    in a new process, as another item's may have been to blame; one that runs out of time does not.

    Args:
        items: Read once.
        job: What is done with them.
        num_workers: Processes, at least 1.

    Raises:
        WorkerError: no process can be started.
    """
    pool = Pool(job, num_workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(item))
            if len(waiting) >= num_workers * ITEMS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.close()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this worker process if the block takes longer, also if it hangs in compiled code.

    In a process that is not a worker of `in_processes` there is no limit.
    """
    if not _is_worker:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends a process that does not handle it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def on_signals(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals until the block ends; outside of the main thread Python hands out none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, earlier in zip(numbers, before, strict=True):
            signal.signal(number, earlier)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next item of the same size.

    Whoever decodes allocates and frees the same megabytes for each file. Left alone, glibc gives
    them back and has them mapped again, with a page fault for each 4 KiB: that took up to as long
    as decoding (`python -m benchmarks.ingest_memory`). Other C libraries have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_ARRAY_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


class _Died(Exception):
    """A worker process ended before it answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Pool(Generic[Item, Result]):
    """Threads, each with a process that is replaced when it dies."""

    def __init__(self, job: Job[Item, Result], num_workers: int) -> None:
        _preload(job)
        self._job = job
        self._is_closed = False
        self._threads = ThreadPoolExecutor(num_workers)
        self._workers: list[_Worker[Item, Result]] = []
        self._idle: queue.SimpleQueue[_Worker[Item, Result]] = queue.SimpleQueue()

    def submit(self, item: Item) -> Future[Result]:
        """Queue an item."""
        return self._threads.submit(self._work_on, item)

    def close(self) -> None:
        """Drop what is queued and end the processes."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for wait in (False, True):
            for worker in list(self._workers):
                worker.close()
            self._threads.shutdown(wait=wait)

    def _work_on(self, item: Item) -> Result:
        try:
            return self._attempt(item)
        except _Died as first:
            if self._is_closed:
                raise
            if first.failure is Failure.TOO_SLOW:
                _logger.warning("an item took too long; its worker process is replaced")
                return self._job.failed(first.failure)
        _logger.warning("a worker process died; its item is tried once more")
        try:
            return self._attempt(item)
        except _Died as second:
            _logger.warning("an item killed its worker process again; it is given up")
            return self._job.failed(second.failure)

    def _attempt(self, item: Item) -> Result:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self._job)
            self._workers.append(worker)
        try:
            result = worker.ask(item)
        except _Died:
            self._workers.remove(worker)
            worker.close()
            raise
        except BaseException:
            self._idle.put(worker)
            raise
        self._idle.put(worker)
        return result


class _Worker(Generic[Item, Result]):
    """One process and the pipe to it."""

    def __init__(self, job: Job[Item, Result]) -> None:
        self._pipe, theirs = _FORKSERVER.Pipe()
        # The server has the environment of its start.
        arguments = (theirs, job.work, job.memory_bytes, dict(os.environ))
        self._process = _FORKSERVER.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(
                "worker processes end before they do anything; a script that calls this must keep "
                'its own work under `if __name__ == "__main__":`, and they need memory'
            ) from error

    def ask(self, item: Item) -> Result:
        """Return the result of an item, or raise what it raised or `_Died`."""
        try:
            self._pipe.send(item)
            is_result, answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise _Died(self._why_it_ended()) from error
        if is_result:
            result: Result = answer
            return result
        raise answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _why_it_ended(self) -> Failure:
        self._process.join()
        known = {-signal.SIGALRM: Failure.TOO_SLOW, -signal.SIGKILL: Failure.KILLED}
        return known.get(self._process.exitcode or 0, Failure.CRASHED)


def _preload(job: Job[Item, Result]) -> None:
    """Have the server import what the work needs, if it does not run yet."""
    work = job.work
    while isinstance(work, partial):
        work = work.func
    _FORKSERVER.set_forkserver_preload([work.__module__, *job.preload])


def _serve(
    pipe: "connection.Connection",
    work: Callable[[Item], Result],
    memory_bytes: int,
    environment: dict[str, str],
) -> None:
    """Answer one item after the other until the pipe is closed."""
    os.environ.clear()
    os.environ.update(environment)
    _prepare_worker(memory_bytes)
    pipe.send(None)
    with suppress(EOFError):
        while True:
            item = pipe.recv()
            try:
                answer: tuple[bool, object] = (True, work(item))
            except Exception as error:  # noqa: BLE001 - raised in the process that asked
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = (False, error)
            pipe.send(answer)


def _prepare_worker(memory_bytes: int) -> None:
    global _is_worker
    _is_worker = True
    # Ctrl-C reaches the whole process group; only the parent answers it, by closing the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):  # of all in the container, the kernel is to end this one
        _OOM_SCORE.write_text(_MOST_LIKELY_KILLED, encoding="ascii")
    keep_freed_memory()
    if memory_bytes:
        most = _data_bytes() + memory_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard in (resource.RLIM_INFINITY, -1) or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _data_bytes() -> int:
    """Return what this process has of the memory that RLIMIT_DATA counts."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _end_with_parent() -> None:
    # A killed parent closes no queue: without this its workers would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def available_processors() -> int:
    """Return the processors that this process may use, by affinity and quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([allowed or 1, *_quotas()]))


def available_memory_bytes() -> int:
    """Return the memory that this process and its children may use: of control group or machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_memory_limits()])


def workers_for(bytes_each: int, bytes_besides: int) -> int:
    """Return how many worker processes to start: a processor and memory for each; at least 1.

    Args:
        bytes_each: Most that a worker holds.
        bytes_besides: What the process that starts them needs.
    """
    in_memory = (available_memory_bytes() - bytes_besides) // bytes_each
    return max(1, min(available_processors(), in_memory))


def _quotas() -> Iterator[int]:
    """Yield processors by each quota above this process; a fraction of one counts as one."""
    for group in _groups("cpu"):
        text = _read(group / "cpu.max") or " ".join(
            _read(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
        numbers = text.split()
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers) and int(numbers[1]):
            yield max(1, math.ceil(int(numbers[0]) / int(numbers[1])))


def _memory_limits() -> Iterator[int]:
    for group in _groups("memory"):
        text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if text.isdecimal():
            yield int(text)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the control groups of this process for a controller, each with all above it.

    Version 2 has one tree for all controllers, version 1 one for each. If a container sees
    another path than the host's, its own group is the root of what it sees.
    """
    for line in _read(_CONTROL_GROUPS).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mount = _MOUNT / controllers if controllers else _MOUNT
        group = mount / path.strip("/")
        while True:
            yield group
            if group == mount or mount not in group.parents:
                break
            group = group.parent


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
