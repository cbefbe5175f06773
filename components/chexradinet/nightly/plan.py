"""Planning a night: what is in the inbox, less what was done, cut into shards.

Unfinished plans come first, with their own models and settings; what arrived since is a plan of its
own. Time is the store's: this machine's clock does not matter.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexradinet.config.nightly import PlanConfig
from chexradinet.errors import ArtifactError, ConfigError, MismatchError, StoreError
from chexradinet.model.bundle_info import BundleInfo, read_bundle_info
from chexradinet.nightly.addresses import Addresses
from chexradinet.nightly.inbox import Inbox, inbox_images, new_images, taken_images
from chexradinet.nightly.lease import store_time
from chexradinet.nightly.ledger import (
    Ledger,
    Plan,
    completions,
    create_plan,
    open_ledger,
    plan_numbers,
    read_plan,
)
from chexradinet.registry.champion import fetch_champion
from chexradinet.store import parse_uri, require_conditional_create

_log = logging.getLogger(__name__)

_ATTEMPTS = 5


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


def check_model(info: BundleInfo) -> None:
    """Refuse a model that this release cannot score with.

    Raises:
        ArtifactError: it is not calibrated.
        MismatchError: its calibration knows other findings, or its preprocessing is of another
            release.
    """
    if info.calibration is None:
        raise ArtifactError(
            "the model is not calibrated, so its scores are no probabilities; publish what "
            "`evaluate` wrote"
        )
    known = set(info.calibration["findings"])
    if known != set(info.findings):
        raise MismatchError(
            f"the model scores {', '.join(info.findings)}, its calibration holds "
            f"{', '.join(sorted(known))}; publish a bundle that was calibrated as a whole"
        )
    if info.preprocessing.digest() != info.preprocessing_digest:
        raise MismatchError(
            f"the model was trained on pixels of preprocessing {info.preprocessing_digest[:12]}, "
            f"this release makes {info.preprocessing.digest()[:12]}; use the release that trained "
            "it, or train again"
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
        settings=config.results.as_dict(),
        shard_size=config.shard_size,
        images=inbox.images,
    )
