"""Planning a night: what is in the inbox, less what was done, cut into shards.

Unfinished plans come first, with their own models and settings; what arrived since is a plan of its
own. Time is the store's: this machine's clock does not matter.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from chexradinet.config.nightly import PlanConfig
from chexradinet.dicom import is_dicomweb
from chexradinet.errors import ConfigError, MismatchError, SourceError, StoreError
from chexradinet.model import BundleInfo, read_bundle_info
from chexradinet.nightly import NOT_SCORED, POSTPONED, VANISHED, Addresses, same_place
from chexradinet.nightly.history import MAX_FAILED_NIGHTS, History, read_history, roll_up
from chexradinet.nightly.ledger import (
    UNKNOWN_SIZE,
    Plan,
    PlannedImage,
    create_plan,
    open_ledger,
    read_plan,
    store_time,
)
from chexradinet.nightly.model import check_model
from chexradinet.registry import fetch_champion
from chexradinet.store import open_store
from chexradinet.store.protocol import require_conditional_create
from chexradinet.store.uri import parse_uri

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
_NOT_DONE = frozenset({POSTPONED, VANISHED, NOT_SCORED})
"""What an X-ray may have come to that does not count as done: it is planned again."""


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """What the inbox holds that no plan has done or is at."""

    images: tuple[PlannedImage, ...] = ()
    """To plan now, in order of their keys."""
    num_young: int = 0
    """Left for the next night because they may still be written."""
    num_left: int = 0
    """Left for the next night because the plan is full."""
    num_unreadable: int = 0
    """Links that lead nowhere or out of the inbox, and folders that may not be read."""
    num_replaced: int = 0
    """Under a name whose object an earlier plan has done: the sender has written it again.

    Plans that did nothing of what the inbox still holds are not read, and so not counted.
    """


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """What planning came to."""

    status: str
    """`planned`, `continued`, `nothing_new` or `another_run_active`."""
    parts: tuple[tuple[int, int], ...] = ()
    """Number and shards of each plan to work on, the oldest first."""
    num_images: int = 0
    """X-rays of all of them."""
    inbox: Inbox = Inbox()
    """What else the inbox holds."""
    set_aside: tuple[int, ...] = ()
    """Plans that were tried on three nights, are not complete and are left out."""

    @property
    def work(self) -> str:
        """The plans as text, such as `3:1,4:20`; empty if there is nothing to do."""
        return ",".join(f"{number}:{shards}" for number, shards in self.parts)

    @property
    def num_shards(self) -> int:
        """Shards of all plans."""
        return sum(shards for _, shards in self.parts)

    def as_text(self) -> str:
        """Return the outcome as one sentence."""
        said = {
            "planned": f"plan {self.work}: {self.num_images} X-rays",
            "continued": f"an unfinished plan continues ({self.work}): {self.num_images} X-rays",
            "nothing_new": "nothing new in the inbox: nothing to score",
            "another_run_active": "another run is at work: nothing to do (one that was stopped "
            "between two stages gives way when its lease runs out)",
        }[self.status]
        young, left, unreadable, replaced = (
            getattr(self.inbox, f"num_{kind}")
            for kind in ("young", "left", "unreadable", "replaced")
        )
        if young or left:
            said += f" ({young} still settling, {left} over the plan's size)"
        if unreadable:
            said += f"; {unreadable} links or folders of the inbox cannot be read and are left out"
        if replaced:
            said += (
                f"; {replaced} objects were written again since they were scored: compare their "
                "versions if no sender should do so"
            )
        if self.set_aside:
            said += (
                f"; set aside after {MAX_FAILED_NIGHTS} nights without an end: plan "
                f"{', '.join(map(str, self.set_aside))}; once the cause is gone, delete the "
                "`tries` beside its plan.json in the ledger to have it tried again"
            )
        return said


def parts_of(work: str) -> tuple[tuple[int, int], ...]:
    """Return number and shards of each plan that `PlanOutcome.work` names.

    Raises:
        ConfigError: the text is malformed.
    """
    try:
        pairs = [part.split(":") for part in work.split(",") if part]
        return tuple((int(number), int(shards)) for number, shards in pairs)
    except ValueError as error:
        raise ConfigError(
            f"work is {work!r}; it must be what planning gave, as 3:1,4:20"
        ) from error


def place_of(work: str, index: int) -> tuple[int, int]:
    """Return plan and shard of a position in the work.

    Raises:
        ConfigError: there is no such position.
    """
    left = index
    for number, shards in parts_of(work):
        if 0 <= left < shards:
            return number, left
        left -= shards
    raise ConfigError(f"shard is {index}, and the work {work!r} has no such shard")


def plan(addresses: Addresses, config: PlanConfig) -> PlanOutcome:
    """Return the plans to work on: unfinished ones, and a new one of what is new.

    Args:
        addresses: Inbox, models and results.
        config: Sizes, settling time, and the settings that results depend on.

    Raises:
        SourceError: the inbox is a path without a folder.
        ArtifactError: the champion was changed, is not calibrated, or needs another release.
        MismatchError: an unfinished plan is of another inbox.
        StoreError: inbox or models cannot be read, or results cannot be written.
    """
    ledger = open_ledger(addresses.results_uri)
    require_conditional_create(ledger.store, ledger.key("ledger", ""))
    champion = _champion(addresses.models_uri)
    for _ in range(_ATTEMPTS):
        now, history = store_time(ledger), read_history(ledger)
        aside = history.set_aside(now.date().isoformat())
        pending = [read_plan(ledger, number) for number in history.unfinished()]
        unfinished = [found for found in pending if found.number not in aside]
        for found in unfinished:
            _check_inbox(found, addresses.inbox_uri)
        left_out: list[str] = []
        listed = inbox_images(addresses.inbox_uri, now, left_out)
        waiting = {image.key: image for image in listed}
        replaced = drop_taken(waiting, history, pending, (champion[1], config.rescore_since))
        inbox = replace(
            _new_images(waiting.values(), now, config),
            num_unreadable=len(left_out),
            num_replaced=len(replaced),
        )
        roll_up(history)
        if not inbox.images:
            status = "continued" if unfinished else "nothing_new"
            return _outcome(status, unfinished, inbox, aside)
        number = max(history.numbers, default=0) + 1
        made = _new_plan(number, now, addresses, champion, config, inbox)
        if create_plan(ledger, made):
            status = "continued" if unfinished else "planned"
            return _outcome(status, [*unfinished, made], inbox, aside)
    raise StoreError(
        f"{addresses.results_uri} got {_ATTEMPTS} plans from other runs while this one planned; "
        "let them end and run again"
    )


def _champion(models_uri: str) -> tuple[BundleInfo, str]:
    with tempfile.TemporaryDirectory() as folder:
        digest = fetch_champion(models_uri, Path(folder) / "bundle")
        info, _ = read_bundle_info(Path(folder) / "bundle")
    check_model(info)
    return info, digest


def _check_inbox(found: Plan, inbox_uri: str) -> None:
    if not same_place(found.inbox_uri, inbox_uri):
        raise MismatchError(
            f"plan {found.number} is unfinished and reads {found.inbox_uri}, but {inbox_uri} was "
            "given; finish it with its own inbox, or use another folder of results"
        )


def _outcome(
    status: str, plans: Sequence[Plan], inbox: Inbox, set_aside: tuple[int, ...]
) -> PlanOutcome:
    outcome = PlanOutcome(
        status=status,
        parts=tuple((found.number, found.num_shards) for found in plans),
        num_images=sum(len(found.images) for found in plans),
        inbox=inbox,
        set_aside=set_aside,
    )
    _log.info("%s", outcome.as_text())
    return outcome


def _new_plan(
    number: int,
    now: datetime,
    addresses: Addresses,
    champion: tuple[BundleInfo, str],
    config: PlanConfig,
    inbox: Inbox,
) -> Plan:
    info, digest = champion
    fitted: Mapping[str, Any] = (info.calibration or {})["findings"]
    return Plan(
        number=number,
        date=now.date().isoformat(),
        planned_at=now,
        inbox_uri=addresses.inbox_uri,
        bundle_digest=digest,
        preprocessing_digest=info.preprocessing_digest,
        findings=info.findings,
        calibrated=tuple(one for one in info.findings if fitted[one]["threshold"] is not None),
        settings=config.results.record(),
        shard_size=config.shard_size,
        images=inbox.images,
        num_unreadable=inbox.num_unreadable,
    )


def inbox_images(
    inbox_uri: str, now: datetime, left_out: list[str] | None = None
) -> Iterator[PlannedImage]:
    """Yield the objects of the inbox; hidden ones, as of a copy in progress, are left out.

    An archive does not say when an X-ray arrived: then it counts as arrived when it is listed.

    Args:
        inbox_uri: The inbox: a folder, or `dicomweb://` with its dates.
        now: Time by the store's clock.
        left_out: Collects links that lead nowhere or out of it, and folders that may not be read.

    Raises:
        SourceError: the inbox is a path without a folder.
        StoreError: it cannot be listed.
    """
    if is_dicomweb(inbox_uri):
        from chexradinet.dicom.web import list_instances

        for ref in list_instances(inbox_uri, left_out=left_out):
            name = "studies/" + ref.uri.rpartition("/studies/")[2]
            yield PlannedImage(key=name, etag=ref.sop_uid, size_bytes=UNKNOWN_SIZE, arrived=now)
        return
    location = parse_uri(inbox_uri)
    if location.bucket is None and not Path(location.key).is_dir():
        raise SourceError(f"{inbox_uri} is not a folder; give the folder that X-rays arrive in")
    store, prefix = open_store(inbox_uri)
    for info in store.list(prefix, [] if left_out is None else left_out):
        name = info.key[len(prefix) :]
        if not any(part.startswith(".") for part in name.split("/")):
            yield PlannedImage(
                key=name, etag=info.etag, size_bytes=info.size_bytes, arrived=info.modified
            )


def _new_images(waiting: Iterable[PlannedImage], now: datetime, config: PlanConfig) -> Inbox:
    """Choose what to plan of the objects that no plan has done or is at."""
    new = list(waiting)
    settled = [image for image in new if _is_settled(image, now, config.settle_s)]
    first = sorted(settled, key=lambda image: (image.arrived, image.key))[: config.max_images]
    return Inbox(
        images=tuple(sorted(first, key=lambda image: image.key)),
        num_young=len(new) - len(settled),
        num_left=len(settled) - len(first),
    )


def _is_settled(image: PlannedImage, now: datetime, settle_s: float) -> bool:
    if image.size_bytes == UNKNOWN_SIZE:
        return True  # an archive lists what it has received as a whole
    # A time far ahead is a sender's wrong clock, not a fresh object; reading checks it once more.
    return abs((now - image.arrived).total_seconds()) >= settle_s


def drop_taken(
    waiting: dict[str, PlannedImage],
    history: History,
    unfinished: Sequence[Plan],
    model: tuple[str, str] = ("", ""),
) -> set[str]:
    """Drop the listed objects that earlier plans have done or are at.

    Returns:
        Keys of those left that an earlier plan did with another content.

    Args:
        waiting: Key to object of the inbox; loses what is taken.
        history: Past plans.
        unfinished: The plans of it that are not complete.
        model: Digest of the model that scores now, and a date (`YYYY-MM-DD`, or empty) since which
            a plan counts only if it used this model.
    """
    digest, rescore_since = model
    replaced: set[str] = set()

    def counts(bundle_digest: str, date: str) -> bool:
        return not rescore_since or bundle_digest == digest or date < rescore_since

    for plan in unfinished:
        if counts(plan.bundle_digest, plan.date):
            _drop(waiting, ((image.key, image.etag) for image in plan.images))
    oldest = min((image.arrived for image in waiting.values()), default=None)
    if oldest is None:
        return replaced
    if any(image.size_bytes == UNKNOWN_SIZE for image in waiting.values()):
        oldest = datetime.min.replace(tzinfo=UTC)  # listed now, and perhaps scored long ago
    # A plan whose newest X-ray is older than all that is listed did nothing of it.
    wanted = [
        head.number
        for head in history.heads.values()
        if head.newest_arrival >= oldest and counts(head.bundle_digest, head.date)
    ]
    for index in history.indexes(wanted):
        done = index.filter(~pc.field("status").isin(sorted(_NOT_DONE)))
        columns = (done.column(name).to_pylist() for name in ("key", "etag"))
        replaced |= _drop(waiting, zip(*columns, strict=True))
    return replaced & waiting.keys()


def _drop(waiting: dict[str, PlannedImage], taken: Iterable[tuple[str, str]]) -> set[str]:
    """Drop what is taken; return the keys that were taken with another content."""
    replaced = set()
    for key, etag in taken:
        found = waiting.get(key)
        if found is not None and found.etag == etag:
            del waiting[key]
        elif found is not None:
            replaced.add(key)
    return replaced
