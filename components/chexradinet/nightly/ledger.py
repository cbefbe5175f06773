"""The nightly ledger: what was planned and what came of it, as objects that are created once.

    <results>/ledger/plans/000001/plan.json           the X-rays of a plan, cut into shards
    <results>/ledger/plans/000001/shards/00000.zip    all that came of a shard, in one object
    <results>/ledger/plans/000001/index.parquet       what became of each X-ray of the plan
    <results>/ledger/plans/000001/complete.json       the results of the plan are all written
    <results>/ledger/plans/000001/tries/2026-01-31    the plan was worked on that day
    <results>/ledger/plans/000001/to-archive          its DICOM results are for the archive
    <results>/ledger/plans/000001/archived.json       what the archive said to each of them

Numbers have no gaps, so of two runs that plan at once one creates the next number and the other
finds it there. Plans are completed in the order of their numbers, except for those that were set
aside; see `history`. No clock takes part (ADR 0007).

A lease says who is at work on a folder of results, so that two runs at once do not do the same work
twice. It is advisory: results stay right without it, because every step of the ledger is created
once. It is renewed while a stage works, and can be taken over when its time is over by the store's
clock, or at once when its owner was a process of this machine that is gone.
"""

import bisect
import hashlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from chexradinet.artifacts import check_schema, record_of
from chexradinet.errors import ArtifactError, StoreConflictError, StoreError, StoreNotFoundError
from chexradinet.parallel import on_signals
from chexradinet.store import open_store
from chexradinet.store.protocol import ObjectStore

SCHEMA = 1
"""Version of every document and table of the ledger."""

UNKNOWN_SIZE = -1
"""Size of an X-ray in an archive, which does not tell it."""
DEFAULT_TTL_S = 600.0
"""Seconds without a renewal after which a lease is over."""
_ATTEMPTS = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ledger:
    """The folder of results that a ledger lies in."""

    store: ObjectStore
    prefix: str
    """What the keys of the results start with; empty or ending in `/`."""

    def key(self, *names: str) -> str:
        """Return the key of an object below the results."""
        return self.prefix + "/".join(names)

    def plan_key(self, number: int, *names: str) -> str:
        """Return the key of an object of a plan."""
        return self.key("ledger", "plans", f"{number:06d}", *names)

    def shard_key(self, number: int, shard: int) -> str:
        """Return the key of a shard's results."""
        return self.plan_key(number, "shards", f"{shard:05d}.zip")

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that must not exist yet; return False if there is one."""
        try:
            self.store.create(key, data)
        except StoreConflictError:
            return False
        return True


def open_ledger(results_uri: str) -> Ledger:
    """Return the ledger of a folder of results; nothing is made yet."""
    return Ledger(*open_store(results_uri))


def document_bytes(kind: str, content: Mapping[str, Any]) -> bytes:
    """Return a document of the ledger, times in ISO 8601; equal contents give equal bytes.

    Raises:
        ValueError: a number in it is not finite.
    """
    document = {"schema": SCHEMA, "kind": kind, **content}
    text = json.dumps(document, sort_keys=True, allow_nan=False, default=datetime.isoformat)
    return (text + "\n").encode()


@contextmanager
def well_formed(key: str) -> Iterator[None]:
    """Turn what reading a malformed document raises into one error that names the document.

    Raises:
        ArtifactError: the document lacks something, or holds a value of another type.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{key} is malformed ({type(error).__name__}); restore it from an earlier version or a "
            "replica, as docs/operations.md says under 'Restore from a lost bucket'"
        ) from error


def read_json(ledger: Ledger, key: str, kind: str) -> dict[str, Any]:
    """Read a document of the ledger.

    Raises:
        StoreNotFoundError: there is none.
        ArtifactError: it is not a JSON object, or of another kind or schema version.
    """
    data = ledger.store.get(key)
    with well_formed(key):
        document = dict(json.loads(data))
    check_schema(document, kind, SCHEMA, Path(key))
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImage:
    """One object of the inbox, as it was when planned."""

    key: str
    """Name below the inbox."""
    etag: str
    """Version of the content, by the store."""
    size_bytes: int
    arrived: datetime
    """When it was written, by the store's clock, in UTC."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The X-rays of one plan, the model that scores them, and all settings that results depend on.

    A plan is finished with its own model and settings, whatever changed since.
    """

    number: int
    date: str
    """Night that the results belong to, `YYYY-MM-DD` in UTC."""
    planned_at: datetime
    """By the store's clock, in UTC."""
    inbox_uri: str
    bundle_digest: str
    preprocessing_digest: str
    findings: tuple[str, ...]
    calibrated: tuple[str, ...]
    """Findings whose scores are probabilities; the others were too rare to calibrate."""
    settings: Mapping[str, Any]
    """`ResultSettings.as_dict`."""
    shard_size: int
    images: tuple[PlannedImage, ...]
    """In order of their keys."""
    num_unreadable: int = 0
    """Links and folders of the inbox that could not be read when it was planned."""

    @property
    def salt(self) -> bytes:
        """Key that codes the patients of this plan: the same for equal plans, for no others."""
        return hashlib.sha256(document_bytes("nightly-plan", self.as_dict())).digest()

    @property
    def digest(self) -> str:
        """SHA-256 that names this plan in its shards; it does not give away the salt."""
        return hashlib.sha256(self.salt).hexdigest()

    @property
    def num_shards(self) -> int:
        """Shards of the plan, at least one."""
        return max(1, -(-len(self.images) // self.shard_size))

    def shard(self, number: int) -> tuple[PlannedImage, ...]:
        """Return the X-rays of a shard."""
        return self.images[number * self.shard_size : (number + 1) * self.shard_size]

    def image(self, key: str) -> PlannedImage:
        """Return the X-ray of a key that the plan has."""
        return self.images[bisect.bisect_left(self.images, key, key=lambda image: image.key)]

    def as_dict(self) -> dict[str, Any]:
        """Return what `document_bytes` stores; `plan_of` reads it back."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        names = [one.name for one in fields(PlannedImage)]
        values["images"] = {name: [getattr(one, name) for one in self.images] for name in names}
        if not self.num_unreadable:
            del values["num_unreadable"]
        return values


def plan_of(document: Mapping[str, Any]) -> Plan:
    """Return the plan that a document describes.

    Raises:
        LookupError, TypeError, ValueError: the document is malformed.
    """
    names = [one.name for one in fields(PlannedImage)]
    rows = zip(*(document["images"][name] for name in names), strict=True)
    images = [dict(zip(names, row, strict=True)) for row in rows]
    plan = record_of(Plan, {**document, "images": images})
    if [image.key for image in plan.images] != sorted({image.key for image in plan.images}):
        raise ValueError("keys are not in order, or not unique")
    if plan.number < 1 or plan.shard_size < 1:
        raise ValueError("a number is not positive")
    return plan


def create_plan(ledger: Ledger, plan: Plan) -> bool:
    """Write a plan; return False if another run created this number first."""
    key = ledger.plan_key(plan.number, "plan.json")
    return ledger.create(key, document_bytes("nightly-plan", plan.as_dict()))


def read_plan(ledger: Ledger, number: int) -> Plan:
    """Read a plan.

    Raises:
        StoreNotFoundError: there is no plan of this number.
        ArtifactError: it is malformed, or of another schema version.
    """
    key = ledger.plan_key(number, "plan.json")
    document = read_json(ledger, key, "nightly-plan")
    with well_formed(key):
        return plan_of(document)


def read_completion(ledger: Ledger, number: int) -> dict[str, Any] | None:
    """Return what `complete.json` of a plan says, None if the plan is unfinished."""
    try:
        return read_json(ledger, ledger.plan_key(number, "complete.json"), "nightly-completion")
    except StoreNotFoundError:
        return None


def dicom_start(date: str, number: int) -> str:
    """Return what the names of all DICOM results of a plan start with, below the results."""
    return f"dicom/date={date}/{number:06d}-"


def dicom_folder(ledger: Ledger, plan: Plan, object_key: str) -> str:
    """Return what the keys of an X-ray's DICOM results start with.

    Each X-ray of a plan has a folder of its own, so that collecting can take away the results of
    one without scores, and never those of another plan.
    """
    name = hashlib.sha256(object_key.encode()).hexdigest()[:16]
    return ledger.key(dicom_start(plan.date, plan.number)) + name + "/"


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
