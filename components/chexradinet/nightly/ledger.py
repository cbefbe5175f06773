"""The nightly ledger: what was planned and what came of it, as objects that are created once.

    <results>/ledger/plans/000001/plan.json           the X-rays of a plan, cut into shards
    <results>/ledger/plans/000001/shards/00000.zip    all that came of a shard, in one object
    <results>/ledger/plans/000001/index.parquet       what became of each X-ray of the plan
    <results>/ledger/plans/000001/complete.json       the results of the plan are all written

Numbers have no gaps, so of two runs that plan at once one creates the next number and the other
finds it there. Plans are completed in the order of their numbers. No clock takes part (ADR 0007).
"""

import bisect
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from chexradinet.artifacts import check_schema, table_bytes, table_of
from chexradinet.errors import ArtifactError, StoreConflictError, StoreNotFoundError
from chexradinet.store.opening import open_store
from chexradinet.store.protocol import ObjectStore

SCHEMA = 1
"""Version of every document and table of the ledger."""
_log = logging.getLogger(__name__)
_PLAN = re.compile(r"^(\d{6})/(plan|complete)\.json$")


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


def open_ledger(results_uri: str) -> Ledger:
    """Return the ledger of a folder of results; nothing is made yet."""
    return Ledger(*open_store(results_uri))


def document_bytes(kind: str, content: Mapping[str, Any]) -> bytes:
    """Return a document of the ledger; equal contents give equal bytes.

    Raises:
        ValueError: a number in it is not finite.
    """
    document = {"schema": SCHEMA, "kind": kind, **content}
    return (json.dumps(document, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(ledger: Ledger, key: str, kind: str) -> dict[str, Any]:
    """Read a document of the ledger.

    Raises:
        StoreNotFoundError: there is none.
        ArtifactError: it is no JSON object, or of another kind or schema version.
    """
    try:
        document = json.loads(ledger.store.get(key))
    except ValueError as error:
        raise ArtifactError(f"{key} is no JSON; restore it from an earlier version") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{key} holds no JSON object; restore it from an earlier version")
    check_schema(document, kind, SCHEMA, Path(key))
    return document


def plan_numbers(ledger: Ledger) -> tuple[list[int], list[int]]:
    """Return the numbers of all plans and of those that are complete, both ascending."""
    folder = ledger.key("ledger", "plans", "")
    found: dict[str, list[int]] = {"plan": [], "complete": []}
    for info in ledger.store.list(folder):
        match = _PLAN.match(info.key[len(folder) :])
        if match:
            found[match[2]].append(int(match[1]))
    return found["plan"], found["complete"]


@dataclass(frozen=True, kw_only=True)
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

    @property
    def salt(self) -> bytes:
        """What patients of this plan are coded with: the same for equal plans, for no others."""
        return hashlib.sha256(document_bytes("nightly-plan", self.as_dict())).digest()

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
        """Return JSON-ready values; `plan_of` reads them back."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "planned_at": self.planned_at.isoformat(),
            "findings": list(self.findings),
            "calibrated": list(self.calibrated),
            "settings": dict(self.settings),
            "images": {
                "key": [image.key for image in self.images],
                "etag": [image.etag for image in self.images],
                "size_bytes": [image.size_bytes for image in self.images],
                "arrived": [image.arrived.isoformat() for image in self.images],
            },
        }


_PLAIN = ("number", "date", "inbox_uri", "bundle_digest", "preprocessing_digest", "shard_size")


def plan_of(document: Mapping[str, Any]) -> Plan:
    """Return the plan that a document describes."""
    columns = document["images"]
    rows = zip(
        columns["key"], columns["etag"], columns["size_bytes"], columns["arrived"], strict=True
    )
    return Plan(
        **{name: document[name] for name in _PLAIN},
        planned_at=datetime.fromisoformat(document["planned_at"]),
        findings=tuple(document["findings"]),
        calibrated=tuple(document["calibrated"]),
        settings=document["settings"],
        images=tuple(
            PlannedImage(
                key=key, etag=etag, size_bytes=size, arrived=datetime.fromisoformat(arrived)
            )
            for key, etag, size, arrived in rows
        ),
    )


def create_plan(ledger: Ledger, plan: Plan) -> bool:
    """Write a plan; return False where another run created this number first."""
    key = ledger.plan_key(plan.number, "plan.json")
    try:
        ledger.store.create(key, document_bytes("nightly-plan", plan.as_dict()))
    except StoreConflictError:
        return False
    return True


def read_plan(ledger: Ledger, number: int) -> Plan:
    """Read a plan.

    Raises:
        StoreNotFoundError: there is no plan of this number.
        ArtifactError: it is of another schema version.
    """
    return plan_of(read_json(ledger, ledger.plan_key(number, "plan.json"), "nightly-plan"))


def read_completion(ledger: Ledger, number: int) -> dict[str, Any] | None:
    """Return what `complete.json` of a plan says, None where the plan is unfinished."""
    try:
        return read_json(ledger, ledger.plan_key(number, "complete.json"), "nightly-completion")
    except StoreNotFoundError:
        return None


def completions(ledger: Ledger, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Yield `complete.json` of each of these plans."""
    for number in numbers:
        document = read_completion(ledger, number)
        if document is not None:
            yield document


def write_index(ledger: Ledger, number: int, index: pa.Table) -> None:
    """Write what became of each X-ray of a plan, once: `key`, `etag`, `image_key`, `status`."""
    data = table_bytes(index, "nightly-index", SCHEMA)
    try:
        ledger.store.create(ledger.plan_key(number, "index.parquet"), data)
    except StoreConflictError:
        # Equal rows in perhaps other bytes, by another release: `complete.json` has their digest.
        _log.info("plan %d has its index already", number)


def read_index(ledger: Ledger, number: int, head: Mapping[str, Any] | None = None) -> pa.Table:
    """Read what became of each X-ray of a complete plan.

    Args:
        ledger: Of the results.
        number: Of the plan.
        head: Its `complete.json`, if read already.

    Raises:
        ArtifactError: the plan is not complete, or its index is not the one it was completed with.
    """
    head = head or read_completion(ledger, number)
    if head is None:
        raise ArtifactError(f"plan {number} is not complete; collect it first")
    key = ledger.plan_key(number, "index.parquet")
    data = ledger.store.get(key)
    found, written = hashlib.sha256(data).hexdigest(), head["index_sha256"]
    if found != written:
        raise ArtifactError(
            f"{key} has SHA-256 {found}, written was {written}; restore it from an earlier version"
        )
    return table_of(data, "nightly-index", SCHEMA, key)
