"""What becomes of each decoded file: an image of the data set, or a rejection."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chexradinet.dataset.labels.table import TableRow
from chexradinet.dataset.schema import ImageRecord, Rejection
from chexradinet.ingest.decoding import Decoded, Facts, Outcome
from chexradinet.ingest.placing import Placement, image_record
from chexradinet.ingest.plan import Plan, not_labelled, only_named
from chexradinet.records import RejectReason


class Image(NamedTuple):
    """One X-ray that enters."""

    record: ImageRecord
    row: TableRow | None
    decoded: Decoded


def settle(
    plan: Plan, outcomes: Iterable[Outcome], place: Placement
) -> Iterator[Image | Rejection]:
    """Yield what becomes of each file of a plan, in its order, then of rows without a file.

    Of X-rays with equal pixels or equal SOP Instance UIDs the first enters. What is yielded depends
    on plan and outcomes alone. Names in rejections are those of the source.
    """
    seen: set[bytes] = set()
    waiting = dict(plan.unmatched)
    for file, row, outcome in zip(plan.files, plan.rows, outcomes, strict=True):
        if not isinstance(outcome, Decoded):
            waiting.pop(getattr(outcome, "image_id", ""), None)
            yield Rejection(file, RejectReason(outcome.reason), outcome.detail)
            continue
        facts = outcome.facts
        told = row or waiting.pop(facts.image_id, None)
        if _names(facts) & seen:
            detail = "an earlier row has the same pixels or the same SOP Instance UID"
            yield Rejection(file, RejectReason.DUPLICATE, detail)
        elif told is None and plan.needs_row:
            yield not_labelled(file)
        elif told is not None and told.rejected is not None:
            yield Rejection(file, told.rejected, "by the label table")
        elif facts.header is not None and _is_under_age(told, place):
            yield Rejection(file, RejectReason.UNDER_AGE, "by the label table")
        else:
            seen |= _names(facts)
            yield Image(image_record(told, file, facts, place), told, outcome)
    for unused in waiting.values():
        yield only_named(unused)


def _is_under_age(row: TableRow | None, place: Placement) -> bool:
    """Judge what the table says; the gate has judged what the header says."""
    return row is not None and row.age is not None and row.age < place.min_age_years


def _names(facts: Facts) -> set[bytes]:
    return {bytes.fromhex(facts.digest), bytes.fromhex(facts.image_id)} - {b""}
