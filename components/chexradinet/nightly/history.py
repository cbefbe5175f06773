"""What past nights did: read once per stage, and rolled up so that a night's cost stays level.

A plan leaves `complete.json` (its head) and `index.parquet` (what became of each object). Every 64
complete plans are rolled up into two objects, so that a night reads one head and one index per 64
plans, not per plan:

    <results>/ledger/rollups/000001.parquet    the indexes of plans 1 to 64
    <results>/ledger/rollups/000001.json       their heads, and the SHA-256 of that index

Roll-ups only repeat what the plans say: if one is deleted or damaged, the plans themselves are read
and planning makes it again (ADR 0017).
"""

import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from chexradinet.artifacts import record_of, table_bytes, table_of
from chexradinet.errors import ArtifactError, StoreIntegrityError, StoreNotFoundError
from chexradinet.nightly.ledger import SCHEMA, Ledger, document_bytes, read_json, well_formed

PLANS_PER_ROLLUP = 64
"""Plans that are rolled up together."""
MAX_FAILED_NIGHTS = 3
"""A plan that was tried on so many nights and is not complete is set aside."""

_KIND = "nightly-rollup"
_NAME = re.compile(
    r"^(?P<plan>\d{6})/(?P<name>plan\.json|complete\.json|index\.parquet|shards/\d{5}\.zip"
    r"|to-archive|archived\.json|tries/(?P<day>\d{4}-\d{2}-\d{2}))$"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanHead:
    """What a complete plan says about itself."""

    number: int
    date: str
    """Night that its results belong to, `YYYY-MM-DD` in UTC."""
    completed_on: str
    """Day on which it was completed, by the store's clock in UTC."""
    bundle_digest: str
    newest_arrival: datetime
    """When its newest X-ray arrived."""
    index_sha256: str
    skipped: tuple[int, ...] = ()
    """Earlier plans that were set aside when this one was completed."""


@dataclass(frozen=True, kw_only=True)
class History:
    """All plans of a ledger, as one listing and a few reads gave them."""

    ledger: Ledger
    numbers: tuple[int, ...]
    """Every plan, ascending and without gaps."""
    heads: Mapping[int, PlanHead]
    """The complete plans."""
    rollups: Mapping[int, str] = field(default_factory=dict)
    """First plan of each roll-up to the SHA-256 of its index."""
    tries: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Days on which scoring of a plan began, `YYYY-MM-DD`."""
    for_archive: frozenset[int] = frozenset()
    """Plans whose DICOM results are for the archive."""
    archived: frozenset[int] = frozenset()
    """Those of which the archive has answered for each result."""
    damaged: set[int] = field(default_factory=set)
    """Roll-ups whose index cannot be read, once that was seen."""

    def set_aside(self, today: str) -> tuple[int, ...]:
        """Return the plans that were tried on three nights before today and are not complete."""
        tried = {number: sum(day < today for day in days) for number, days in self.tries.items()}
        return tuple(
            number
            for number in self.numbers
            if number not in self.heads and tried.get(number, 0) >= MAX_FAILED_NIGHTS
        )

    def unfinished(self) -> tuple[int, ...]:
        """Return the plans that are not complete."""
        return tuple(number for number in self.numbers if number not in self.heads)

    def waiting_for_archive(self) -> list[PlanHead]:
        """Return the complete plans whose DICOM results are still to be sent."""
        waiting = self.for_archive - self.archived
        return [head for head in self.heads.values() if head.number in waiting]

    def before(self, number: int, skipped: Collection[int]) -> list[PlanHead]:
        """Return the plans that were complete when a plan was, or is, completed.

        Args:
            number: Number of the plan.
            skipped: Earlier plans that it does not wait for; see `PlanHead.skipped`.
        """
        return [
            head
            for head in self.heads.values()
            if (head.number < number and head.number not in skipped) or number in head.skipped
        ]

    def indexes(self, wanted: Collection[int]) -> Iterator[pa.Table]:
        """Yield what became of each object of some complete plans: `INDEX`, and the `plan`.

        Raises:
            ArtifactError: an index is missing, or is not the one that its plan was completed with.
        """
        left = set(wanted)
        for first, digest in self.rollups.items():
            block = left & set(range(first, first + PLANS_PER_ROLLUP))
            if not block:
                continue
            table = _read_rollup(self.ledger, first, digest)
            if table is None:
                self.damaged.add(first)
                continue
            left -= block
            yield table.filter(pc.is_in(table.column("plan"), pa.array(sorted(block), pa.int32())))
        for number in sorted(left):
            yield _with_plan(
                read_index(self.ledger, number, self.heads[number].index_sha256), number
            )


def read_history(ledger: Ledger) -> History:
    """Return what past nights did.

    Raises:
        ArtifactError: a plan is missing, or one of its documents is missing or malformed.
    """
    names: dict[int, set[str]] = {}
    completed: dict[int, str] = {}
    tries: dict[int, set[str]] = {}
    folder = ledger.key("ledger", "plans", "")
    for info in ledger.store.list(folder):
        match = _NAME.match(info.key[len(folder) :])
        if match is None:
            continue
        number = int(match["plan"])
        names.setdefault(number, set()).add(match["name"])
        if match["day"]:
            tries.setdefault(number, set()).add(match["day"])
        if match["name"] == "complete.json":
            completed[number] = info.modified.astimezone(UTC).date().isoformat()
    _require_whole(ledger, names)
    heads, rollups = _rolled_up(ledger, completed)
    for number, day in completed.items():
        if number not in heads:
            key = ledger.plan_key(number, "complete.json")
            with well_formed(key):
                document = read_json(ledger, key, "nightly-completion")
                heads[number] = record_of(PlanHead, {**document, "completed_on": day})
    return History(
        ledger=ledger,
        numbers=tuple(sorted(names)),
        heads=dict(sorted(heads.items())),
        rollups=rollups,
        tries={number: frozenset(days) for number, days in tries.items()},
        for_archive=frozenset(number for number in names if "to-archive" in names[number]),
        archived=frozenset(number for number in names if "archived.json" in names[number]),
    )


def roll_up(history: History) -> bool:
    """Roll up what is not; return whether anything was."""
    last = max(history.numbers, default=0) - PLANS_PER_ROLLUP + 1
    made = False
    for first in range(1, last + 1, PLANS_PER_ROLLUP):
        block = range(first, first + PLANS_PER_ROLLUP)
        lacking = first not in history.rollups or first in history.damaged
        if lacking and all(number in history.heads for number in block):
            _write_rollup(history, block)
            made = True
    return made


def write_index(ledger: Ledger, number: int, index: pa.Table) -> str:
    """Write what became of each object of a plan, once; return the SHA-256 of what is there."""
    key = ledger.plan_key(number, "index.parquet")
    data = table_bytes(index, "nightly-index", SCHEMA)
    if not ledger.create(key, data):
        # Equal rows in perhaps other bytes, by another release: `complete.json` has their digest.
        _log.info("plan %d has its index already", number)
        data = ledger.store.get(key)
    return hashlib.sha256(data).hexdigest()


def read_index(ledger: Ledger, number: int, sha256: str) -> pa.Table:
    """Read what became of each object of a complete plan.

    Raises:
        ArtifactError: the index is missing, or is not the one that the plan was completed with.
    """
    key = ledger.plan_key(number, "index.parquet")
    try:
        data = ledger.store.get(key)
    except StoreNotFoundError as error:
        raise ArtifactError(f"{key} is missing; restore it from an earlier version") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{key} has SHA-256 {found}, expected {sha256}; restore it from an earlier version"
        )
    return table_of(data, "nightly-index", SCHEMA, key)


def note_try(ledger: Ledger, number: int, today: str) -> None:
    """Note that a plan is worked on today; it is set aside if it is not complete after three."""
    ledger.create(ledger.plan_key(number, "tries", today), b"")  # unless another shard noted it


def _require_whole(ledger: Ledger, names: Mapping[int, Collection[str]]) -> None:
    """Refuse a ledger that lost a part: its X-rays would be scored twice, or never."""
    for number in range(1, max(names, default=0) + 1):
        found = names.get(number, ())
        lost = {"plan.json"} - set(found)
        if "complete.json" in found:
            lost |= {"index.parquet"} - set(found)
        if lost:
            folder = ledger.plan_key(number)
            rest = f"; {len(found)} other objects of the plan are there" if found else ""
            raise ArtifactError(
                f"{folder}/{min(lost)} is missing{rest}: a part of the ledger was deleted, or not "
                "restored; bring the whole folder back from its versions or a replica, as "
                "docs/operations.md says under 'Restore from a lost bucket'"
            )


def _rolled_up(
    ledger: Ledger, completed: Mapping[int, str]
) -> tuple[dict[int, PlanHead], dict[int, str]]:
    """Return the heads and the indexes' digests of all roll-ups that can be read."""
    heads: dict[int, PlanHead] = {}
    rollups: dict[int, str] = {}
    last = max(completed, default=0) - PLANS_PER_ROLLUP + 1
    for first in range(1, last + 1, PLANS_PER_ROLLUP):
        key = _rollup_key(ledger, first, "json")
        try:
            with well_formed(key):
                document = read_json(ledger, key, _KIND)
                found = [record_of(PlanHead, one) for one in document["plans"]]
                digest = str(document["index_sha256"])
        except StoreNotFoundError:
            continue
        except (ArtifactError, StoreIntegrityError) as error:
            _log.warning("a roll-up is not used: %s", error)
            continue
        if all(head.number in completed for head in found):
            heads |= {head.number: head for head in found}
            rollups[first] = digest
    return heads, rollups


def _write_rollup(history: History, block: range) -> None:
    ledger, first = history.ledger, block.start
    heads = [history.heads[number] for number in block]
    indexes = (read_index(ledger, head.number, head.index_sha256) for head in heads)
    rows = [_with_plan(index, number) for index, number in zip(indexes, block, strict=True)]
    data = table_bytes(pa.concat_tables(rows), _KIND, SCHEMA)
    document = {
        "plans": [asdict(head) for head in heads],
        "index_sha256": hashlib.sha256(data).hexdigest(),
    }
    # Not created once: one that is damaged is replaced. Until both are there, nobody uses either.
    ledger.store.put(_rollup_key(ledger, first, "parquet"), data)
    ledger.store.put(_rollup_key(ledger, first, "json"), document_bytes(_KIND, document))
    _log.info("plans %d to %d are rolled up", first, block[-1])


def _read_rollup(ledger: Ledger, first: int, digest: str) -> pa.Table | None:
    """Return the index of a roll-up; None if it is missing or damaged."""
    key = _rollup_key(ledger, first, "parquet")
    try:
        data = ledger.store.get(key)
    except (StoreNotFoundError, StoreIntegrityError):
        data = b""
    if hashlib.sha256(data).hexdigest() != digest:
        _log.warning("%s is missing or damaged; the plans' own indexes are read", key)
        return None
    return table_of(data, _KIND, SCHEMA, key)


def _rollup_key(ledger: Ledger, first: int, kind: str) -> str:
    return ledger.key("ledger", "rollups", f"{first:06d}.{kind}")


def _with_plan(index: pa.Table, number: int) -> pa.Table:
    return index.append_column("plan", pa.array([number] * len(index), pa.int32()))
