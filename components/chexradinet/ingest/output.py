"""Ingest to a directory or a bucket, and the page that says what it kept, rejected, and why.

For a bucket it is made in a local folder and uploaded when complete. The folder's name follows from
the address, so that a run that was killed before or during the upload continues from what it left.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import IngestConfig
from chexradinet.dataset import (
    Dataset,
    DatasetInfo,
    open_dataset,
    read_doubtful,
    read_headers,
)
from chexradinet.errors import ConfigError
from chexradinet.ingest import KINDS_READ
from chexradinet.ingest.ingest import Progress, empty_splits, ingest, unseen_findings
from chexradinet.ingest.target import DATASET_FILES, require_prefix, require_report
from chexradinet.reports import count, write_page
from chexradinet.reports.pictures import overlay, png_bytes
from chexradinet.store import open_store, upload_directory
from chexradinet.store.uri import parse_uri

SHOWN_FLAGS = ("polarity_unsure", "view_unknown", "burned_in_unknown", "body_part_unknown")
"""Flags of kept X-rays that a look at the image can settle, the most telling first."""
_MAX_KEPT = 12
"""Pictures of kept X-rays that are shown."""
_THUMBNAIL_SIDE_PX = 200
_MAX_THUMBNAILS = 24

WORK_VARIABLE = "CHEXRADINET_WORK"
"""Environment variable with the folder that data sets are made in before they are uploaded."""


def ingest_to(
    source: str,
    out: str,
    config: IngestConfig,
    progress: Progress | None = None,
    *,
    labels: str = "",
    report: str = "",
) -> DatasetInfo:
    """Read a source and write its data set to a directory or a bucket.

    Args:
        source: As `ingest` takes it.
        out: Directory, or URI of a folder; an older data set there is replaced, its head document
            first removed and last written.
        config: As `ingest` takes it.
        progress: Called after each file.
        labels: As `ingest` takes it.
        report: Path of the ingest report to write; empty for none.

    Returns:
        What `dataset.json` holds.

    Raises:
        ConfigError: the address cannot be read, the local folder belongs to somebody else, or
            `out` or `report` hold something else.
        ChexRadiNetError: as `ingest`, or the store cannot be written; run again to continue.
    """
    location = parse_uri(out)
    if report:
        require_report(report)
    local, finished = Path(location.key), None
    if location.bucket is not None:
        work = _work_folder(out)
        local, finished = work / "dataset", work / "finished.json"
        require_prefix(out, source, labels, config)
    info = ingest(source, local, config, progress, labels, finished)
    if report:
        report_ingest(local, Path(report))
    if location.bucket is not None:
        upload_directory(local, out, config.store)
        _remove_older(out, info, config)
        shutil.rmtree(local.parent)
    return info


def _work_folder(out: str) -> Path:
    root = Path(os.environ.get(WORK_VARIABLE, "") or tempfile.gettempdir())
    folder = root / f"chexradinet-{os.getuid()}" / hashlib.sha256(out.encode()).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder, folder.parent):
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise ConfigError(
                f"{path} belongs to somebody else; remove it, or set {WORK_VARIABLE} to a folder "
                "of your own"
            )
    return folder


def _remove_older(out: str, info: DatasetInfo, config: IngestConfig) -> None:
    """Remove what a larger, older data set left at the address: shards beyond the last, tables."""
    store, prefix = open_store(out, config.store)
    for found in list(store.list(prefix)):
        name = found.key[len(prefix) :]
        if name not in info.files and DATASET_FILES.fullmatch(name):
            store.delete(found.key)


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
    views = zip(*np.unique(data.column("view"), return_counts=True), strict=True)
    rejected = [
        Thumbnail(image=picture, image_id=name, reason=f"rejected: {reason}")
        for name, reason, picture in read_doubtful(dataset)
    ]
    samples = [*rejected[:_MAX_KEPT], *_flagged(data)]
    write_ingest_report(
        target, data.info, {str(view): int(number) for view, number in views}, samples
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
            if flag in found and len(chosen) < _MAX_KEPT:
                chosen.setdefault(row, flag)
    return [
        Thumbnail(
            image=data.images(np.array([row]))[0],
            image_id=str(headers["image_id"].iloc[row]),
            reason=f"kept: {flag}",
        )
        for row, flag in chosen.items()
    ]
