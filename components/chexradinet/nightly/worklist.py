"""Which studies are on a night's worklist: the new ones, and those that come due.

The list of a day holds the X-rays of the day's plans, those of earlier plans that were completed on
it, and of all others those whose wait reaches the cap before the next list is read and did not
before the list that was read last. So each study is on a list when it is new, and once more before
the cap, whether it has been read or not: nothing here knows that.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from chexradinet.config.nightly import WorklistConfig
from chexradinet.errors import SchemaError
from chexradinet.nightly.ledger import Ledger, Plan, read_completion, read_plan
from chexradinet.nightly.merge import Merged, NightImage, merged_before
from chexradinet.nightly.summary import waiting_images
from chexradinet.reports.worklist import WaitingImage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorklistScope:
    """What is on the worklist of a day."""

    images: tuple[WaitingImage, ...]
    """Scored X-rays."""
    earlier: tuple[Plan, ...]
    """Plans before the one that is being collected whose X-rays are all on the list."""
    foreign: tuple[int, ...]
    """Numbers of plans with X-rays for the list that another release stored in its own way."""


def end_of(day: str) -> datetime:
    """Return the end of a day `YYYY-MM-DD`, in UTC."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1)


def studies_of(
    ledger: Ledger, plan: Plan, merged: Merged, complete: Sequence[int], config: WorklistConfig
) -> WorklistScope:
    """Return the list of a plan's day; an X-ray that was scored again counts by its last scores.

    Args:
        ledger: Of the results.
        plan: That is being collected.
        merged: What became of its X-rays.
        complete: Numbers of the complete plans, ascending.
        config: Cap and interval.
    """
    found: dict[str, WaitingImage] = {}
    earlier, foreign = [], []
    window = _newly_due(ledger, plan, complete, config)
    for number in complete:
        head = read_completion(ledger, number) if number < plan.number else None
        if head is None:
            continue
        is_new = head["date"] == plan.date or _completed_on(ledger, number) >= plan.date
        if not is_new and datetime.fromisoformat(head["newest_arrival"]) <= window[0]:
            continue
        other = read_plan(ledger, number)
        try:
            scored = merged_before(ledger, other)
        except SchemaError as error:
            # This night is not to fail over a list that its X-rays were on already.
            _log.warning("plan %d is left off the worklist: %s", number, error)
            foreign.append(number)
            continue
        earlier += [other] if is_new else []
        images = [image for image in scored if is_new or window[0] < image.arrived <= window[1]]
        found |= _by_key(images, other)
    found |= _by_key(merged.images, plan)
    return WorklistScope(
        images=tuple(found.values()), earlier=tuple(earlier), foreign=tuple(foreign)
    )


def _newly_due(
    ledger: Ledger, plan: Plan, complete: Sequence[int], config: WorklistConfig
) -> tuple[datetime, datetime]:
    """Return after when, and until when, a study arrived that is due on this list for the first.

    Where no night was scored before, nothing is.
    """
    dates = [read_plan(ledger, number).date for number in complete if number < plan.number]
    last = max((day for day in dates if day < plan.date), default=plan.date)
    before = timedelta(hours=config.max_wait_h - config.interval_h)
    return end_of(last) - before, end_of(plan.date) - before


def _completed_on(ledger: Ledger, number: int) -> str:
    """Return the day on which a plan was completed, by the store's clock in UTC."""
    info = ledger.store.stat(ledger.plan_key(number, "complete.json"))
    day: date = info.modified.astimezone(UTC).date()
    return day.isoformat()


def _by_key(images: Sequence[NightImage], plan: Plan) -> dict[str, WaitingImage]:
    waiting = waiting_images(images, plan.findings, plan.calibrated)
    return {image.image_key: found for image, found in zip(images, waiting, strict=True)}
