"""A night's pages: the report, and the worklist in the order to read its studies in.

The report says what was scored, what was not and why, what stands out, how long it took. Everything
but the section on timings is the same, byte for byte, when a killed night is finished by another
run.

On the worklist a study's priority is the highest product, over its X-rays and findings, of the
finding's urgency and its calibrated probability; a score that is not calibrated gives none. A study
that has waited so long that it would pass the cap before the next list is read goes before all
others, the longest waiting first, and is listed again for it if it was on an earlier list: in a
published simulation, ordering by an algorithm alone cut the mean wait for a pneumothorax from 80 to
36 minutes and raised the longest from 890 to 1,293 (Baltruschat et al. 2021, European Radiology 31,
PMC8128725).

The urgencies are this project's own, for a reading room to change; they are not clinical advice.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import numpy as np
from PIL import Image

from chexradinet.artifacts import CsvWriter
from chexradinet.config.nightly import WorklistConfig, WorklistIdentifiers
from chexradinet.reports import write_page
from chexradinet.reports.pictures import png_bytes, score_histograms

NOTICE = (
    "For research and for ordering a worklist, not for diagnosis. A score is not a diagnosis; a "
    "low score does not rule out disease. Nightly scoring is not emergency triage."
)
_MAX_LISTED = 200
_THUMBNAIL_PX = 96

OperatingPoints = Mapping[str, Mapping[str, float | None]]
"""Finding to `sensitivity` and `specificity` of its threshold."""

COLUMNS = (
    "position", "study_uid", "reason", "priority", "top_finding", "top_probability",
    "flagged_findings", "num_images", "arrived", "due", "notes", "not_assessed",
    "files",
    "accession_number", "patient_id", "study_date",
)  # fmt: skip
"""Columns of `worklist.csv`."""


@dataclass(frozen=True, kw_only=True)
class FlaggedCase:
    """One X-ray of the report's pictures."""

    png: bytes
    study_uid: str
    finding: str
    probability: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideXRay:
    """One scored X-ray that is out of distribution."""

    study_uid: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class NightReport:
    """What the report of a plan shows."""

    date: str
    plan: int
    model_digest: str
    num_planned: int
    num_scored: int
    num_studies: int
    excluded: Sequence[Mapping[str, Any]]
    """Rows of the table of rejected objects; the report counts them, and names none."""
    probabilities: Mapping[str, Sequence[float]]
    """Finding to scores of all scored X-rays; calibrated probabilities if it has a threshold."""
    num_flagged: Mapping[str, int]
    """Finding to flagged X-rays."""
    thresholds: Mapping[str, float | None]
    """Finding to operating threshold; a finding without one is not assessed."""
    operating_points: OperatingPoints = field(default_factory=dict)
    """Finding to `sensitivity` and `specificity` of its threshold on the test split, if known."""
    drift: Mapping[str, Any] | None
    """What `drift` returned; None if the model has no reference."""
    reference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Finding to its distribution in the reference."""
    num_out_of_distribution: int | None = None
    """None if the model has no reference."""
    ood_rule: str = ""
    """Distance above which an X-ray is flagged as unlike, and how often by chance."""
    outside: Sequence[OutsideXRay] = ()
    """X-rays unlike those that the model was calibrated on, the farthest first."""
    quality: Mapping[str, int] = field(default_factory=dict)
    """Quality code to scored X-rays that have it."""
    cases: Sequence[FlaggedCase] = ()
    """The most urgent flagged X-rays."""
    archived: bool = False
    """Whether DICOM results are sent to an archive; the page gets what came of it afterwards."""
    timings: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """What took time to its seconds: all together, the median and the longest of an X-ray."""
    score_s: float = 0.0
    """Seconds that the shards took, added up."""

    @property
    def assessed(self) -> list[str]:
        """Findings with an operating threshold."""
        return [name for name in self.probabilities if self.thresholds[name] is not None]

    @property
    def not_assessed(self) -> list[str]:
        """Findings without an operating threshold: their scores are not probabilities."""
        return [name for name in self.probabilities if self.thresholds[name] is None]


def write_night_report(path: Path, report: NightReport) -> None:
    """Write the report as one self-contained HTML file."""
    counts = Counter((str(row["status"]), str(row["reason"])) for row in report.excluded)
    write_page(
        path,
        "nightly",
        report=report,
        notice=NOTICE,
        excluded=sorted(counts.items()),
        outside=report.outside[:_MAX_LISTED],
        num_more=max(0, len(report.outside) - _MAX_LISTED),
        histograms=score_histograms(report.probabilities, report.reference)
        if report.num_scored
        else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingImage:
    """One scored X-ray, as the worklist needs it."""

    study_uid: str
    arrived: datetime
    """When it came into the inbox."""
    probabilities: Mapping[str, float]
    """Finding to calibrated probability, of those that give priority."""
    flagged: Sequence[str]
    """Findings at or above their threshold."""
    not_assessed: Sequence[str] = ()
    """Findings without an operating threshold."""
    model_digest: str = ""
    """The model that scored it."""
    notes: Sequence[str] = ()
    """Quality codes, `out_of_distribution`."""
    file: str = ""
    """Name below the inbox of an X-ray without a study UID; for the CSV alone, not for a page."""
    accession: str = ""
    """Accession number, empty if not known."""
    patient_id: str = ""
    """Patient ID, empty if not known."""
    study_date: str = ""
    """`YYYY-MM-DD`, empty if not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One study of the worklist."""

    study_uid: str
    reason: str
    """`due` if the cap put it at its place, else `priority`."""
    priority: float
    """In [0, 1]."""
    top_finding: str
    """The finding that gave the priority, empty if no score is calibrated."""
    top_probability: float
    flagged: tuple[str, ...]
    num_images: int
    arrived: datetime
    """When its first X-ray came into the inbox."""
    due: datetime
    """When it reaches the cap."""
    notes: tuple[str, ...]
    not_assessed: tuple[str, ...] = ()
    model_digest: str = ""
    """The model that scored all of its X-rays; empty if there were several."""
    files: tuple[str, ...] = ()
    """Names below the inbox of X-rays without a study UID."""
    accession: str = ""
    patient_id: str = ""
    study_date: str = ""


class Omissions(NamedTuple):
    """What belongs on a worklist and cannot be named there."""

    unscored: Mapping[tuple[str, str], int]
    """Status and reason to objects of the night that have no score."""
    foreign_plans: Sequence[int] = ()
    """Plans whose X-rays another release stored in its own way."""


def worklist(
    images: Iterable[WaitingImage], until: datetime, config: WorklistConfig
) -> tuple[Entry, ...]:
    """Return the studies in the order to read them; equal input gives equal order.

    Args:
        images: Scored X-rays, any number per study, in any order.
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
        flagged=_union(image.flagged for image in images),
        num_images=len(images),
        arrived=arrived,
        due=due,
        notes=_union(image.notes for image in images),
        not_assessed=_union(image.not_assessed for image in images),
        model_digest=images[0].model_digest if len({i.model_digest for i in images}) == 1 else "",
        files=_union([image.file] for image in images if image.file),
        **_identifiers(images, config.worklist_identifiers),
    )


def _identifiers(images: Sequence[WaitingImage], shown: WorklistIdentifiers) -> dict[str, str]:
    """Return what names a study as far as the setting allows, from the first X-ray that has it."""
    names = {
        WorklistIdentifiers.NONE: (),
        WorklistIdentifiers.ACCESSION: ("accession", "study_date"),
        WorklistIdentifiers.PATIENT: ("accession", "study_date", "patient_id"),
    }
    return {
        name: next((value for image in images if (value := getattr(image, name))), "")
        for name in names[shown]
    }


def _union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for names in lists for name in names}))


def _order(entry: Entry) -> tuple[bool, float, float, str]:
    waiting = entry.due.timestamp()
    if entry.reason == "due":
        return False, waiting, -entry.priority, entry.study_uid
    return True, -entry.priority, waiting, entry.study_uid


def worklist_csv(entries: Sequence[Entry]) -> str:
    """Return the list as CSV with `COLUMNS`, times in UTC."""
    stream = io.StringIO()
    writer = CsvWriter(stream)
    writer.writerow(COLUMNS)
    for position, entry in enumerate(entries, start=1):
        writer.writerow([position, *_cells(entry)])
    return stream.getvalue()


def _cells(entry: Entry) -> list[str]:
    known = bool(entry.top_finding)
    return [
        entry.study_uid,
        entry.reason,
        f"{entry.priority:.6f}" if known else "",
        entry.top_finding,
        f"{entry.top_probability:.6f}" if known else "",
        ";".join(entry.flagged),
        str(entry.num_images),
        entry.arrived.isoformat(timespec="seconds"),
        entry.due.isoformat(timespec="seconds"),
        ";".join(entry.notes),
        ";".join(entry.not_assessed),
        ";".join(entry.files),
        entry.accession,
        entry.patient_id,
        entry.study_date,
    ]


def write_worklist_page(
    path: Path,
    date: str,
    entries: Sequence[Entry],
    config: WorklistConfig,
    omissions: Omissions | None = None,
    pictures: Mapping[str, bytes] | None = None,
    operating_points: Mapping[str, OperatingPoints] | None = None,
) -> None:
    """Write the worklist as one self-contained HTML file.

    Args:
        path: The HTML file.
        date: Day of the list.
        entries: The studies, in order.
        config: By what they were ordered, and how they are shown.
        omissions: What the list cannot name; None if that was not counted.
        pictures: Study to a PNG file with the heatmap, of those that the night's report shows.
        operating_points: Model to how its thresholds did on the test split.
    """
    zone = ZoneInfo(config.timezone)
    write_page(
        path,
        "worklist",
        date=date,
        entries=entries,
        config=config,
        omissions=omissions,
        notice=NOTICE,
        operating_points=operating_points or {},
        thumbnails={study: _thumbnail(png) for study, png in (pictures or {}).items()},
        viewer_link=lambda entry: viewer_link(entry, config.viewer_url),
        local=lambda moment: moment.astimezone(zone),
    )


def viewer_link(entry: Entry, template: str) -> str:
    """Return a study's address in the viewer; empty without a template or what it needs."""
    values = {"study_uid": entry.study_uid, "accession": entry.accession}
    if not all(values[name] for name in values if f"{{{name}}}" in template):
        return ""
    return template.format(**{name: quote(value, safe="") for name, value in values.items()})


def _thumbnail(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        return png_bytes(np.asarray(image.convert("RGB")))
