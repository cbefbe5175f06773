"""The ingest report: what came in, was kept, was rejected and why, and what looks doubtful."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.reports import page
from chexradinet.reports.overlay import overlay
from chexradinet.reports.report_tables import readable

_THUMBNAIL_SIDE_PX = 200
_MAX_THUMBNAILS = 24
_FOOTER = "Every file of the source is counted once: kept plus rejected is what came in."


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One doubtful X-ray to look at."""

    image: npt.NDArray[np.uint8]
    """Grey values, shape (H, W)."""
    image_id: str
    """Opaque identifier; never a name."""
    reason: str
    """Why it is doubtful, or the code it was rejected with."""


@dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """What the ingest counted."""

    dataset: str
    """Name of the data set."""
    digest: str
    """Digest of its content, in hex."""
    num_found: int
    """Files the source named or held."""
    num_kept: int
    """X-rays in the data set."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reason code to count."""
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split to `images` and `patients`."""
    positives: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Finding to split to positive cases."""
    views: Mapping[str, int] = field(default_factory=dict)
    """View to images; the empty name is unknown."""
    notes: Sequence[str] = ()
    """What a reader must know beside the counts, a sentence each."""


def write_ingest_report(
    path: Path, summary: IngestSummary, doubtful: Sequence[Thumbnail] = ()
) -> None:
    """Write the report, atomically: one self-contained file.

    Args:
        path: The HTML file.
        summary: What was counted.
        doubtful: X-rays to look at; the first 24 are shown, the rest counted.
    """
    num_rejected = sum(summary.rejected.values())
    protocol = f"{summary.dataset} (data {summary.digest[:12]})"
    shown = [
        page.figure(
            page.png_bytes(overlay(one.image, None, min_side_px=_THUMBNAIL_SIDE_PX)),
            f"Chest radiograph, doubtful: {one.reason}",
            f"{one.reason}, image {one.image_id[:16]}",
        )
        for one in doubtful[:_MAX_THUMBNAILS]
    ]
    more = len(doubtful) - len(shown)
    sections = [
        _cards(summary, num_rejected),
        *(page.paragraph(note) for note in summary.notes),
        page.section("Rejected", _rejected(summary, num_rejected, protocol)),
        page.section("Splits", _splits(summary, protocol)),
        page.section("Findings", _positives(summary, protocol)),
        page.section("Views", _views(summary, protocol)),
        page.section(
            "To look at",
            page.panel(shown),
            page.paragraph(f"{more:,} more are not shown." if more else "", "note"),
        ),
    ]
    page.write_page(path, "Ingest report", protocol, sections, _FOOTER)


def _cards(summary: IngestSummary, num_rejected: int) -> str:
    unexplained = summary.num_found - summary.num_kept - num_rejected
    values = [
        ("Found", page.count(summary.num_found), "files of the source"),
        ("Kept", page.count(summary.num_kept), "X-rays in the data set"),
        ("Rejected", page.count(num_rejected), f"for {len(summary.rejected)} reasons"),
    ]
    if unexplained:
        values.append(("Unexplained", page.count(unexplained), "neither kept nor rejected"))
    return page.cards(values)


def _rejected(summary: IngestSummary, num_rejected: int, protocol: str) -> str:
    if not num_rejected:
        return page.paragraph("Nothing was rejected.")
    ordered = sorted(summary.rejected.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        [readable(reason), page.count(num), page.number(num / summary.num_found)]
        for reason, num in ordered
    ]
    return page.table("Rejects by reason", protocol, ["Reason", "Files", "Fraction"], rows)


def _splits(summary: IngestSummary, protocol: str) -> str:
    rows = [
        [split, page.count(counts.get("images")), page.count(counts.get("patients"))]
        for split, counts in summary.splits.items()
    ]
    headers = ["Split", "Images", "Patients"]
    return page.table("A patient is in one split only", protocol, headers, rows)


def _positives(summary: IngestSummary, protocol: str) -> str:
    splits = list(summary.splits)
    rows = [
        [readable(finding), *(page.count(counts.get(split, 0)) for split in splits)]
        for finding, counts in summary.positives.items()
    ]
    return page.table("Positive cases", protocol, ["Finding", *splits], rows)


def _views(summary: IngestSummary, protocol: str) -> str:
    rows: list[list[Any]] = [
        [view or "unknown", page.count(num), page.number(num / max(1, summary.num_kept))]
        for view, num in summary.views.items()
    ]
    return page.table("Views", protocol, ["View", "Images", "Fraction"], rows)
