"""The page that says what ingest kept, what it rejected, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chexradinet.dataset.dataset import (
    Dataset,
    DatasetInfo,
    open_dataset,
    read_doubtful,
    read_headers,
)
from chexradinet.ingest.ingest import empty_splits, unseen_findings
from chexradinet.ingest.sources import KINDS_READ
from chexradinet.reports import count, write_page
from chexradinet.reports.pictures import overlay, png_bytes

SHOWN_FLAGS = ("polarity_unsure", "view_unknown", "burned_in_unknown", "body_part_unknown")
"""Flags of kept X-rays that a look at the image can settle, the most telling first."""
MAX_KEPT = 12
"""Pictures of kept X-rays that are shown."""
_THUMBNAIL_SIDE_PX = 200
_MAX_THUMBNAILS = 24


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One X-ray to review."""

    image: NDArray[np.uint8]
    """Grey values, shape (H, W)."""
    image_id: str
    """Opaque identifier; never a name."""
    reason: str
    """Why it needs review, or the code it was rejected with."""

    @property
    def png(self) -> bytes:
        """The X-ray, enlarged to be seen."""
        return png_bytes(overlay(self.image, None, min_side_px=_THUMBNAIL_SIDE_PX))


def report_ingest(dataset: Path, target: Path) -> None:
    """Write the ingest report of a data set, drawn from the data set alone.

    Args:
        dataset: Directory that `ingest` wrote.
        target: The HTML file to make.

    Raises:
        ArtifactError: the data set cannot be read.
    """
    data = open_dataset(dataset, verify=False)
    views = data.manifest["view"].value_counts(sort=False).sort_index()
    rejected = [
        Thumbnail(image=picture, image_id=name, reason=f"rejected: {reason}")
        for name, reason, picture in read_doubtful(dataset)
    ]
    samples = [*rejected[:MAX_KEPT], *_flagged(data)]
    write_ingest_report(
        target, data.info, {str(view): int(num) for view, num in views.items()}, samples
    )


def write_ingest_report(
    path: Path, info: DatasetInfo, views: Mapping[str, int], samples: Sequence[Thumbnail] = ()
) -> None:
    """Write the report, atomically: one self-contained file.

    Args:
        path: The HTML file.
        info: What was counted.
        views: View to images; the empty name is unknown.
        samples: X-rays to review; the first 24 are shown, the rest counted.
    """
    counts = info.counts
    rejected = sorted(counts["rejected"].items(), key=lambda item: (-item[1], item[0]))
    found = counts["images"] + sum(counts["rejected"].values())
    write_page(
        path,
        "ingest",
        protocol=f"{Path(info.source).name} (data {info.digest[:12]})",
        cards=[
            ("Found", count(found), "files of the source"),
            ("Kept", count(counts["images"]), "X-rays in the data set"),
            ("Rejected", count(found - counts["images"]), f"for {len(rejected)} reasons"),
        ],
        counts=counts,
        found=found,
        views=views,
        notes=_notes(info),
        rejected=rejected,
        samples=samples[:_MAX_THUMBNAILS],
        num_more=max(0, len(samples) - _MAX_THUMBNAILS),
    )


def _notes(info: DatasetInfo) -> list[str]:
    """Return what a reader must know beside the counts."""
    notes = []
    empty = empty_splits(info.counts, info.ingest)
    if empty:
        notes.append(
            f"No X-ray is in the {' and '.join(empty)} split, all {info.counts['images']} are of "
            f"{info.counts['patients']} patients: are ids of patients placeholders, or does the "
            "table give splits without it?"
        )
    unseen = unseen_findings(info.counts)
    if unseen:
        notes.append(
            f"Findings without a positive X-ray in a split: {'; '.join(unseen)}. What they would "
            "tell there is unknown: give more X-rays, or leave them out of findings."
        )
    ignored = info.ingest.get("ignored_files", 0)
    if ignored:
        notes.append(f"{ignored} files of other kinds than {KINDS_READ} were ignored.")
    unlisted = info.ingest.get("unlisted_folders", 0)
    if unlisted:
        notes.append(f"{unlisted} folders could not be listed and were left out.")
    return notes


def _flagged(data: Dataset) -> list[Thumbnail]:
    headers = read_headers(data.path)
    if headers is None:
        return []
    flags = [set(text.split("|")) for text in headers["flags"]]
    chosen: dict[int, str] = {}
    for flag in SHOWN_FLAGS:
        for row, found in enumerate(flags):
            if flag in found and len(chosen) < MAX_KEPT:
                chosen.setdefault(row, flag)
    return [
        Thumbnail(
            image=data.images(np.array([row]))[0],
            image_id=str(headers["image_id"].iloc[row]),
            reason=f"kept: {flag}",
        )
        for row, flag in chosen.items()
    ]
