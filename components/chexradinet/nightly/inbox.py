"""What the inbox holds, and what of it earlier plans have done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from chexradinet.config.nightly import PlanConfig
from chexradinet.errors import SourceError
from chexradinet.nightly.ledger import Ledger, Plan, PlannedImage, read_index
from chexradinet.store import ObjectInfo, open_store, parse_uri

NOT_DONE = frozenset({"postponed", "vanished"})
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
