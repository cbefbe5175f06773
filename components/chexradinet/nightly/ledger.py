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
"""

import bisect
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from chexradinet.artifacts import check_schema, record_of
from chexradinet.errors import ArtifactError, StoreConflictError, StoreNotFoundError
from chexradinet.store.opening import open_store
from chexradinet.store.protocol import ObjectStore

SCHEMA = 1
"""Version of every document and table of the ledger."""

UNKNOWN_SIZE = -1
"""Size of an X-ray in an archive, which does not tell it."""


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
