"""The order to read a night's studies in: urgency of a finding times its probability, with a cap.

A study's priority is the highest product, over its X-rays and findings, of the finding's urgency
and its calibrated probability. A study that has waited so long that it would pass the cap before
the next list is read goes before all others, the longest waiting first, and is listed again for it
where it was on an earlier list: in a published simulation,
ordering by an algorithm alone cut the mean wait for a pneumothorax from 80 to 36 minutes and raised
the longest from 890 to 1,293 (Baltruschat et al. 2021, European Radiology 31, PMC8128725).

The urgencies are this project's own, for a reading room to change; they are no clinical advice.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from chexradinet.config.nightly import WorklistConfig
from chexradinet.reports.page import paragraph, section, table

COLUMNS = (
    "position", "study_uid", "reason", "priority", "top_finding", "top_probability",
    "flagged_findings", "num_images", "arrived", "due", "notes",
)  # fmt: skip
"""Columns of `worklist.csv`."""

RULE = (
    "Studies that would wait more than {max_wait_h:g} h within {interval_h:g} h after the day of "
    "the list come first, the longest waiting at the top, also those of earlier lists: skip what "
    "has been read. Then by the highest urgency of a finding times its calibrated probability. "
    "Nightly scoring is not emergency triage."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingImage:
    """One scored X-ray, as the worklist needs it."""

    study_uid: str
    arrived: datetime
    """When it came into the inbox."""
    probabilities: Mapping[str, float]
    """By finding, of those that give priority."""
    flagged: Sequence[str]
    """Findings at or above their threshold."""
    notes: Sequence[str] = ()
    """Quality codes, `out_of_distribution`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One study of the worklist."""

    study_uid: str
    reason: str
    """`due` where the cap put it at its place, else `priority`."""
    priority: float
    """In [0, 1]."""
    top_finding: str
    """The finding that gave the priority."""
    top_probability: float
    flagged: tuple[str, ...]
    num_images: int
    arrived: datetime
    """Of its first X-ray."""
    due: datetime
    """When it reaches the cap."""
    notes: tuple[str, ...]


def worklist(
    images: Iterable[WaitingImage], until: datetime, config: WorklistConfig
) -> tuple[Entry, ...]:
    """Return the studies in the order to read them; equal input gives equal order.

    Args:
        images: Scored X-rays, any number a study, in any order.
        until: End of the day of the list. Not the time it was made, which would make the list of
            a killed run another one when it is finished later.
        config: Cap, interval and urgencies.
    """
    studies: dict[str, list[WaitingImage]] = {}
    for image in images:
        studies.setdefault(image.study_uid, []).append(image)
    entries = [_entry(study, found, until, config) for study, found in studies.items()]
    return tuple(sorted(entries, key=_order))


def _entry(
    study_uid: str, images: Sequence[WaitingImage], until: datetime, config: WorklistConfig
) -> Entry:
    products = [
        (config.urgency_of(finding) * probability, probability, finding)
        for image in images
        for finding, probability in image.probabilities.items()
    ]
    priority, probability, finding = max(products, default=(0.0, 0.0, ""))
    arrived = min(image.arrived for image in images)
    due = arrived + timedelta(hours=config.max_wait_h)
    return Entry(
        study_uid=study_uid,
        reason="due" if due <= until + timedelta(hours=config.interval_h) else "priority",
        priority=priority,
        top_finding=finding,
        top_probability=probability,
        flagged=tuple(sorted({name for image in images for name in image.flagged})),
        num_images=len(images),
        arrived=arrived,
        due=due,
        notes=tuple(sorted({note for image in images for note in image.notes})),
    )


def _order(entry: Entry) -> tuple[bool, float, float, str]:
    waiting = entry.due.timestamp()
    if entry.reason == "due":
        return False, waiting, -entry.priority, entry.study_uid
    return True, -entry.priority, waiting, entry.study_uid


def worklist_csv(entries: Sequence[Entry]) -> str:
    """Return the list as CSV with `COLUMNS`, times in UTC."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for position, entry in enumerate(entries, start=1):
        writer.writerow([position, *_cells(entry)])
    return stream.getvalue()


def worklist_section(entries: Sequence[Entry], config: WorklistConfig) -> str:
    """Return the list as a section of an HTML page, with the rule of its order."""
    rule = RULE.format(max_wait_h=config.max_wait_h, interval_h=config.interval_h)
    rows = [
        [str(position), entry.study_uid, entry.reason, _finding(entry), _words(entry.flagged),
         _words(entry.notes), f"{entry.priority:.2f}", str(entry.num_images),
         f"{entry.arrived:%Y-%m-%d %H:%M}", f"{entry.due:%Y-%m-%d %H:%M}"]
        for position, entry in enumerate(entries, start=1)
    ]  # fmt: skip
    headers = [
        "", "study", "reason", "first finding", "flagged", "notes", "priority", "X\u2011rays",
        "arrived, UTC", "due, UTC",
    ]  # fmt: skip
    due = {index for index, entry in enumerate(entries) if entry.reason == "due"}
    listed = table(
        "Order to read in", rule, headers, rows, marked=due, text_columns=6, uid_columns=(1,)
    )
    return section("Worklist", listed or paragraph("No study was scored."))


def _words(names: Sequence[str]) -> str:
    return ", ".join(names).replace("_", " ")


def _finding(entry: Entry) -> str:
    return f"{entry.top_finding.replace('_', ' ')} {entry.top_probability:.2f}"


def _cells(entry: Entry) -> list[str]:
    return [
        entry.study_uid,
        entry.reason,
        f"{entry.priority:.6f}",
        entry.top_finding,
        f"{entry.top_probability:.6f}",
        ";".join(entry.flagged),
        str(entry.num_images),
        entry.arrived.isoformat(timespec="seconds"),
        entry.due.isoformat(timespec="seconds"),
        ";".join(entry.notes),
    ]
