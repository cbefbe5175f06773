"""Planning a night: what is in the inbox, less what was done, cut into shards.

Unfinished plans come first, with their own models and settings; what arrived since is a plan of its
own. Time is the store's: this machine's clock does not matter.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from chexradinet.config.nightly import PlanConfig
from chexradinet.errors import ConfigError, MismatchError, SourceError, StoreError
from chexradinet.model.bundle_info import BundleInfo, read_bundle_info
from chexradinet.nightly.lease import store_time
from chexradinet.nightly.ledger import (
    Ledger,
    Plan,
    PlannedImage,
    completions,
    create_plan,
    open_ledger,
    plan_numbers,
    read_index,
    read_plan,
)
from chexradinet.nightly.model import check_model
from chexradinet.nightly.records import POSTPONED, VANISHED, Addresses
from chexradinet.registry.champion import fetch_champion
from chexradinet.store import ObjectInfo, open_store, parse_uri, require_conditional_create

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
NOT_DONE = frozenset({POSTPONED, VANISHED})
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


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """What planning came to."""

    status: str
    """`planned`, `continued`, `nothing_new` or `another_run_active`."""
    parts: tuple[tuple[int, int], ...] = ()
    """Number and shards of each plan to work on, the oldest first."""
    num_images: int = 0
    """X-rays of all of them."""
    num_young: int = 0
    """Objects left for the next night because they may still be written."""
    num_left: int = 0
    """Objects left for the next night because the plan is full."""

    @property
    def work(self) -> str:
        """The plans as text, such as `3:1,4:20`; empty where there is nothing to do."""
        return ",".join(f"{number}:{shards}" for number, shards in self.parts)

    @property
    def num_shards(self) -> int:
        """Shards of all plans."""
        return sum(shards for _, shards in self.parts)

    def as_text(self) -> str:
        """Return the outcome as one sentence."""
        said = {
            "planned": f"plan {self.work}: {self.num_images} X-rays",
            "continued": f"an unfinished plan goes on ({self.work}): {self.num_images} X-rays",
            "nothing_new": "nothing new in the inbox: nothing to score",
            "another_run_active": "another run is at work: nothing to do (one that was stopped "
            "between two stages gives way when its lease runs out)",
        }[self.status]
        left = f"{self.num_young} still settling, {self.num_left} over the plan's size"
        return f"{said} ({left})" if self.num_young or self.num_left else said


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
        numbers, complete = plan_numbers(ledger)
        unfinished = [read_plan(ledger, n) for n in numbers if n not in complete]
        for found in unfinished:
            _check_inbox(found, addresses.inbox_uri)
        listed = {image.key: image for image in inbox_images(addresses.inbox_uri)}
        past = list(completions(ledger, complete))
        model = (champion[1], config.rescore_since)
        taken = taken_images(ledger, past, unfinished, listed, model)
        inbox = new_images(listed, taken, store_time(ledger), config)
        if not inbox.images:
            return _outcome("continued" if unfinished else "nothing_new", unfinished, inbox)
        made = _new_plan(ledger, max(numbers, default=0) + 1, addresses, champion, config, inbox)
        if create_plan(ledger, made):
            status = "continued" if unfinished else "planned"
            return _outcome(status, [*unfinished, made], inbox)
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


def _calibrated(info: BundleInfo) -> tuple[str, ...]:
    fitted: Mapping[str, Any] = (info.calibration or {})["findings"]
    return tuple(name for name in info.findings if fitted[name]["threshold"] is not None)


def _check_inbox(found: Plan, inbox_uri: str) -> None:
    if parse_uri(found.inbox_uri) != parse_uri(inbox_uri):
        raise MismatchError(
            f"plan {found.number} is unfinished and reads {found.inbox_uri}, but {inbox_uri} was "
            "given; finish it with its own inbox, or use another folder of results"
        )


def _outcome(status: str, plans: Sequence[Plan], inbox: Inbox) -> PlanOutcome:
    outcome = PlanOutcome(
        status=status,
        parts=tuple((found.number, found.num_shards) for found in plans),
        num_images=sum(len(found.images) for found in plans),
        num_young=inbox.num_young,
        num_left=inbox.num_left,
    )
    _log.info("%s", outcome.as_text())
    return outcome


def _new_plan(
    ledger: Ledger,
    number: int,
    addresses: Addresses,
    champion: tuple[BundleInfo, str],
    config: PlanConfig,
    inbox: Inbox,
) -> Plan:
    info, digest = champion
    now = store_time(ledger)
    return Plan(
        number=number,
        date=now.date().isoformat(),
        planned_at=now,
        inbox_uri=addresses.inbox_uri,
        bundle_digest=digest,
        preprocessing_digest=info.preprocessing_digest,
        findings=info.findings,
        calibrated=_calibrated(info),
        settings=config.results.record(),
        shard_size=config.shard_size,
        images=inbox.images,
    )


def inbox_images(inbox_uri: str) -> Iterator[PlannedImage]:
    """Yield the objects of the inbox; hidden ones, as of a copy in progress, are left out.

    Raises:
        SourceError: the inbox is a path without a folder.
        StoreError: it cannot be listed.
    """
    location = parse_uri(inbox_uri)
    if location.bucket is None and not Path(location.key).is_dir():
        raise SourceError(f"{inbox_uri} is no folder; give the folder that X-rays arrive in")
    store, prefix = open_store(inbox_uri)
    for info in store.list(prefix):
        name = info.key[len(prefix) :]
        if not any(part.startswith(".") for part in name.split("/")):
            yield _planned(name, info)


def _planned(name: str, info: ObjectInfo) -> PlannedImage:
    return PlannedImage(key=name, etag=info.etag, size_bytes=info.size_bytes, arrived=info.modified)


def new_images(
    listed: Mapping[str, PlannedImage],
    taken: set[tuple[str, str]],
    now: datetime,
    config: PlanConfig,
) -> Inbox:
    """Choose what to plan.

    Args:
        listed: Key to object of the inbox.
        taken: Key and ETag of what earlier plans have done or are at.
        now: By the store's clock.
        config: Settling time and size.
    """
    new = [image for image in listed.values() if (image.key, image.etag) not in taken]
    settled = [image for image in new if _is_settled(image, now, config.settle_s)]
    first = sorted(settled, key=lambda image: (image.arrived, image.key))[: config.max_images]
    return Inbox(
        images=tuple(sorted(first, key=lambda image: image.key)),
        num_young=len(new) - len(settled),
        num_left=len(settled) - len(first),
    )


def _is_settled(image: PlannedImage, now: datetime, settle_s: float) -> bool:
    # A time far ahead is a sender's wrong clock, not a fresh object; reading checks it once more.
    return abs((now - image.arrived).total_seconds()) >= settle_s


def taken_images(
    ledger: Ledger,
    past: Sequence[Mapping[str, Any]],
    unfinished: Sequence[Plan],
    listed: Mapping[str, PlannedImage],
    model: tuple[str, str],
) -> set[tuple[str, str]]:
    """Return key and ETag of the listed objects that earlier plans have done or are at.

    Args:
        ledger: Of the results.
        past: `complete.json` of the complete plans.
        unfinished: The other plans.
        listed: Key to object of the inbox.
        model: Digest of the model that scores now, and a date (`YYYY-MM-DD`, or empty) since which
            a plan counts only where it used this model.
    """
    digest, rescore_since = model

    def counts(bundle_digest: str, date: str) -> bool:
        return not rescore_since or bundle_digest == digest or date < rescore_since

    taken = {
        (image.key, image.etag)
        for plan in unfinished
        if counts(plan.bundle_digest, plan.date)
        for image in plan.images
    }
    oldest = min((image.arrived for image in listed.values()), default=None)
    for head in past:
        newest = datetime.fromisoformat(head["newest_arrival"])
        # A plan whose newest X-ray is older than all that is listed did nothing of it.
        if oldest is None or newest < oldest or not counts(head["bundle_digest"], head["date"]):
            continue
        index = read_index(ledger, head["number"], head)
        columns = (index.column(name).to_pylist() for name in ("key", "etag", "status"))
        taken |= {
            (key, etag)
            for key, etag, status in zip(*columns, strict=True)
            if key in listed and status not in NOT_DONE
        }
    return taken
