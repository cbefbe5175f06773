"""The page that says what ingest kept, what it rejected, and why."""

from pathlib import Path

import numpy as np

from chexradinet.dataset.dataset import (
    Dataset,
    DatasetInfo,
    open_dataset,
    read_doubtful,
    read_headers,
)
from chexradinet.ingest.ingest import empty_splits, unseen_findings
from chexradinet.ingest.sources import KINDS_READ
from chexradinet.reports.ingest import IngestSummary, Thumbnail, write_ingest_report

SHOWN_FLAGS = ("polarity_unsure", "view_unknown", "burned_in_unknown", "body_part_unknown")
"""Flags of kept X-rays that a look at the image can settle, the most telling first."""
MAX_KEPT = 12
"""Pictures of kept X-rays that are shown."""


def report_ingest(dataset: Path, target: Path) -> None:
    """Write the ingest report of a data set, drawn from the data set alone.

    Args:
        dataset: Directory that `ingest` wrote.
        target: The HTML file to make.

    Raises:
        ArtifactError: the data set cannot be read.
    """
    data = open_dataset(dataset, verify=False)
    counts = data.info.counts
    views = data.manifest["view"].value_counts(sort=False).sort_index()
    summary = IngestSummary(
        dataset=Path(data.info.source).name,
        digest=data.digest,
        num_found=counts["images"] + sum(counts["rejected"].values()),
        num_kept=counts["images"],
        rejected=counts["rejected"],
        splits={
            split: {"images": images, "patients": counts["patients_by_split"][split]}
            for split, images in counts["splits"].items()
        },
        positives=counts["positives"],
        views={str(view): int(count) for view, count in views.items()},
        notes=_notes(data.info),
    )
    rejected = [
        Thumbnail(image=picture, image_id=name, reason=f"rejected: {reason}")
        for name, reason, picture in read_doubtful(dataset)
    ]
    write_ingest_report(target, summary, [*rejected[:MAX_KEPT], *_flagged(data)])


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
