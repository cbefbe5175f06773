"""Who is at work on a folder of results: so that two runs at once do not do the same work twice.

Advisory: results stay right without it, because every step of the ledger is created once. A lease
is renewed while a stage works. It can be taken over when its time is over by the store's clock, or
at once when its owner was a process of this machine that is gone.
"""

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from chexradinet.errors import StoreConflictError, StoreError, StoreNotFoundError
from chexradinet.nightly.ledger import Ledger
from chexradinet.parallel import on_signals

DEFAULT_TTL_S = 600.0
"""Seconds without a renewal after which a lease is over."""

_ATTEMPTS = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A run, and the process that works for it."""

    run_id: str
    """The same in all stages of a run; empty for nobody."""
    hostname: str = ""
    boot_id: str = ""
    """Identifies the machine's current boot; empty if unknown."""
    pid: int = 0
    """0 between two stages of a run."""
    started: str = ""
    """When the process started, in the system's own ticks: tells reused numbers apart."""
    ttl_s: float = DEFAULT_TTL_S


def this_process(run_id: str, ttl_s: float = DEFAULT_TTL_S) -> Owner:
    """Return this process as the one that works for a run."""
    return Owner(
        run_id=run_id,
        hostname=socket.gethostname(),
        boot_id=_boot_id(),
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
        ttl_s=ttl_s,
    )


def store_time(ledger: Ledger) -> datetime:
    """Return the time by the store's clock, in UTC."""
    key = ledger.key("ledger", "clock")
    ledger.store.put(key, b"what time is it?\n")
    return ledger.store.stat(key).modified


def acquire(ledger: Ledger, owner: Owner) -> bool:
    """Take the lease, or renew it if the same run has it; return False if another has it."""
    key = _key(ledger)
    for _ in range(_ATTEMPTS):
        try:
            found = ledger.store.stat(key)
            held = _holder(ledger.store.get(key))
            if not _may_take(ledger, held, owner, found.modified):
                _log.info("run %s has been at work since before this one", held.run_id)
                return False
            ledger.store.put(key, _bytes(owner), if_match=found.etag)
        except StoreNotFoundError:
            if not ledger.create(key, _bytes(owner)):
                continue
        except StoreConflictError:
            continue  # another one was faster: look again who it was
        return True
    return False


def release(ledger: Ledger, run_id: str) -> None:
    """Give the lease back if this run has it."""
    _rewrite(ledger, run_id, Owner(run_id=""))


@contextmanager
def holding(ledger: Ledger, owner: Owner, *, last: bool = False) -> Iterator[bool]:
    """Hold the lease during a stage; yields whether it is this run's.

    Args:
        ledger: Results ledger.
        owner: This process.
        last: Give the lease back at the end; otherwise it stays with the run, for its next stage.

    A stage that fails gives it back, also one that is asked to end by SIGTERM, as pods are.
    """
    if not acquire(ledger, owner):
        yield False
        return
    ended = threading.Event()
    beat = threading.Thread(target=_renew, args=(ledger, owner, ended), daemon=True)
    beat.start()
    try:
        with on_signals(_end, signal.SIGTERM):
            yield True
    except BaseException:
        last = True
        raise
    finally:
        ended.set()
        beat.join()
        after = Owner(run_id="") if last else replace(owner, pid=0, started="")
        try:
            _rewrite(ledger, owner.run_id, after)
        except StoreError as error:
            _log.warning("the lease was not given back (%s); it will expire", type(error).__name__)


def _end(number: int, _frame: object) -> None:
    """End as an error does, with the exit code of a process that the signal ended."""
    raise SystemExit(128 + number)


def _renew(ledger: Ledger, owner: Owner, ended: threading.Event) -> None:
    while not ended.wait(owner.ttl_s / 4):
        try:
            if not acquire(ledger, owner):
                _log.warning(
                    "another run took the lease; this one continues, nothing is done twice"
                )
                return
        except StoreError as error:
            _log.warning("the lease was not renewed (%s)", type(error).__name__)


def _rewrite(ledger: Ledger, run_id: str, after: Owner) -> None:
    key = _key(ledger)
    for _ in range(_ATTEMPTS):
        try:
            etag = ledger.store.stat(key).etag
            if _holder(ledger.store.get(key)).run_id != run_id:
                return
            ledger.store.put(key, _bytes(after), if_match=etag)
        except StoreNotFoundError:
            return
        except StoreConflictError:
            continue
        return


def _may_take(ledger: Ledger, held: Owner, owner: Owner, renewed: datetime) -> bool:
    if held.run_id in ("", owner.run_id) or _is_gone(held):
        return True
    # A store whose clock was set back would hold it until the clock has caught up.
    return abs((store_time(ledger) - renewed).total_seconds()) > held.ttl_s


def _is_gone(held: Owner) -> bool:
    """Tell whether the owner was a process of this machine that has ended."""
    here = (held.hostname, held.boot_id) == (socket.gethostname(), _boot_id())
    return here and bool(held.boot_id) and held.pid > 0 and _started(held.pid) != held.started


def _started(pid: int) -> str | None:
    """Return when a process started, None if it is not there or has ended."""
    try:
        # The name before it may hold spaces and brackets, so count from the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def _key(ledger: Ledger) -> str:
    return ledger.key("ledger", "lease.json")


def _bytes(owner: Owner) -> bytes:
    return (json.dumps(asdict(owner), indent=1) + "\n").encode()


def _holder(data: bytes) -> Owner:
    """Return who has the lease; nobody if it cannot be read."""
    try:
        return Owner(**json.loads(data))
    except (ValueError, TypeError):
        _log.warning("the lease cannot be read; it counts as given back")
        return Owner(run_id="")
