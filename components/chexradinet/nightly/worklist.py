"""Which studies are on a night's worklist: the new ones, and those that come due.

The list of a day holds the X-rays of the day's plans, those of earlier plans that were completed on
it, and of all others those whose wait reaches the cap before the next list is read and did not
before the list that was read last. So each study is on a list when it is new, and once more before
the cap, whether it has been read or not: nothing here knows that.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from chexradinet.config.nightly import WorklistConfig
from chexradinet.errors import SchemaError
from chexradinet.nightly.history import History, PlanHead
from chexradinet.nightly.ledger import Plan, read_plan
from chexradinet.nightly.merge import Merged, NightImage, merged_before
from chexradinet.nightly.summary import waiting_images
from chexradinet.reports.nightly import WaitingImage

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
    history: History, plan: Plan, merged: Merged, skipped: Collection[int], config: WorklistConfig
) -> WorklistScope:
    """Return the list of a plan's day; an X-ray that was scored again counts by its last scores.

    Args:
        history: Past plans.
        plan: The plan that is being collected.
        merged: What became of its X-rays.
        skipped: Earlier plans that it does not wait for.
        config: Cap and interval.
    """
    found: dict[str, WaitingImage] = {}
    earlier, foreign = [], []
    past = [head for head in history.before(plan.number, skipped) if head.number < plan.number]
    window = _newly_due(past, plan, config)
    for head in past:
        is_new = head.date == plan.date or head.completed_on >= plan.date
        if not is_new and head.newest_arrival <= window[0]:
            continue
        other = read_plan(history.ledger, head.number)
        try:
            scored = merged_before(history, other)
        except SchemaError as error:
            # This night is not to fail over a list that its X-rays were on already.
            _log.warning("plan %d is left off the worklist: %s", head.number, error)
            foreign.append(head.number)
            continue
        earlier += [other] if is_new else []
        images = [image for image in scored if is_new or window[0] < image.arrived <= window[1]]
        found |= _by_key(images, other)
    found |= _by_key(merged.images, plan)
    return WorklistScope(
        images=tuple(found.values()), earlier=tuple(earlier), foreign=tuple(foreign)
    )


def _newly_due(
    past: Sequence[PlanHead], plan: Plan, config: WorklistConfig
) -> tuple[datetime, datetime]:
    """Return after when, and until when, a study arrived that is due on this list for the first.

    If no night was scored before, nothing is.
    """
    last = max((head.date for head in past if head.date < plan.date), default=plan.date)
    before = timedelta(hours=config.max_wait_h - config.interval_h)
    return end_of(last) - before, end_of(plan.date) - before


def _by_key(images: Sequence[NightImage], plan: Plan) -> dict[str, WaitingImage]:
    waiting = waiting_images(images, plan)
    return {image.image_key: found for image, found in zip(images, waiting, strict=True)}
