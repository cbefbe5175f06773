"""Ingest: a source of X-rays and its label table become a data set, each file decoded once.

Every file that comes in goes out: as an image of the data set, or as a rejection with a reason.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chexradinet.config import IngestConfig, SourceFormat
from chexradinet.dataset.chexpert import read_chexpert_table
from chexradinet.dataset.format import DatasetInfo, DatasetWriter, Rejection, writing_dataset
from chexradinet.dataset.generic import read_generic_table
from chexradinet.dataset.mimic import read_mimic_table
from chexradinet.dataset.nih import read_nih_table
from chexradinet.dataset.rsna import read_rsna_table
from chexradinet.dataset.splits import assign_splits
from chexradinet.dataset.tables import LabelTable, TableRow
from chexradinet.errors import (
    ArtifactError,
    RejectedImageError,
    SourceError,
    TooManyRejectsError,
)
from chexradinet.flows.decoding import Decoded, Outcome, decode_in_order, decoder
from chexradinet.flows.matching import find_file, index_files
from chexradinet.flows.placing import image_record
from chexradinet.flows.sources import open_source
from chexradinet.records import RejectReason

Progress = Callable[[int, int], None]
"""Called with the number of files done and of all files to decode."""

TABLES: Mapping[SourceFormat, Callable[[Path, IngestConfig], LabelTable]] = {
    SourceFormat.NIH: read_nih_table,
    SourceFormat.CHEXPERT: read_chexpert_table,
    SourceFormat.MIMIC: read_mimic_table,
    SourceFormat.RSNA: read_rsna_table,
    SourceFormat.CSV: read_generic_table,
    SourceFormat.DICOM: read_generic_table,
}
"""What reads the tables of each convention."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be decoded, and what is rejected without."""

    rows: tuple[TableRow, ...]
    """Rows to decode, each with a split, in the order of the table."""
    files: tuple[str, ...]
    """The file of each row."""
    rejections: tuple[Rejection, ...]
    num_inputs: int
    """Rows of the table, and files that no row names: each must come out once."""


def ingest(
    source: str, target: Path, config: IngestConfig, progress: Progress | None = None
) -> DatasetInfo:
    """Read a source and write its data set.

    Args:
        source: Folder with images, at any depth, and label tables at its top.
        target: Directory of the data set; it appears when complete, and replaces an older one.
        config: Convention, preprocessing, splits and limits.
        progress: Told after each file.

    Returns:
        What `dataset.json` holds.

    Raises:
        SourceError: the source is missing, empty, or no folder that can be read.
        LabelTableError: a table is damaged or contradicts itself.
        TooManyRejectsError: more was rejected than allowed, or everything.
    """
    opened = open_source(source)
    files = list(opened.files())
    if not files:
        raise SourceError(f"{source} holds no image (PNG, JPEG or DICOM); check the folder")
    table = TABLES[config.format](opened.tables, config)
    for note, times in table.notes.items():
        _logger.warning("%s: %d values set to unknown: %s", table.name, times, note)
    plan = plan_ingest(table, files, config)
    info = DatasetInfo(
        findings=table.findings,
        preprocessing=config.preprocessing,
        source=source,
        split_seed=config.split_seed,
    )
    decode = decoder(opened, config)
    with writing_dataset(target, info, shard_size=config.shard_size) as writer:
        for rejection in plan.rejections:
            writer.reject(rejection)
        outcomes = decode_in_order(plan.files, decode, config.num_workers)
        reasons = _write(writer, plan, _without_copies(outcomes), table.box_frame, progress)
        _check_rejections(reasons, plan, config)
        _check_counts(writer, plan)
    return writer.info


def plan_ingest(table: LabelTable, files: Sequence[str], config: IngestConfig) -> Plan:
    """Decide for each row and each file what happens to it.

    Args:
        table: All rows of the source.
        files: All image files of the source, relative to it.
        config: How the missing splits are made: only among the rows that have a file.

    Raises:
        LabelTableError: the splits contradict each other.
    """
    index = index_files(files)
    rows, found, rejections = [], [], []
    named: set[str] = set()
    for row in table.rows:
        file = find_file(row.file, index)
        named.add(file or "")
        if row.rejected is not None:
            rejections.append(Rejection(file or row.file, row.rejected, "by the label table"))
        elif file is None:
            rejections.append(Rejection(row.file, RejectReason.MISSING, "only the table names it"))
        else:
            rows.append(row)
            found.append(file)
    unnamed = [file for file in files if file not in named]
    rejections += [
        Rejection(file, RejectReason.NOT_LABELLED, "no row of the table names it")
        for file in unnamed
    ]
    return Plan(
        rows=assign_splits(rows, config),
        files=tuple(found),
        rejections=tuple(rejections),
        num_inputs=len(table.rows) + len(unnamed),
    )


def _write(
    writer: DatasetWriter,
    plan: Plan,
    outcomes: Iterable[Outcome],
    box_frame: tuple[int, int] | None,
    progress: Progress | None,
) -> Counter[str]:
    reasons = Counter(rejection.reason.value for rejection in plan.rejections)
    every = zip(plan.rows, plan.files, outcomes, strict=True)
    for number, (row, file, outcome) in enumerate(every, start=1):
        if isinstance(outcome, Decoded):
            writer.add(image_record(row, file, outcome, box_frame), outcome.pixels)
        else:
            reasons[outcome.reason] += 1
            writer.reject(Rejection(file, RejectReason(outcome.reason), outcome.detail))
        if progress is not None:
            progress(number, len(plan.files))
    return reasons


def _without_copies(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Reject an X-ray whose pixels or SOP Instance UID were already seen; the first stays."""
    seen: set[bytes] = set()
    for outcome in outcomes:
        if isinstance(outcome, Decoded):
            names = {bytes.fromhex(outcome.digest), bytes.fromhex(outcome.identity)} - {b""}
            if names & seen:
                detail = "an earlier row has the same pixels or the same SOP Instance UID"
                yield RejectedImageError(RejectReason.DUPLICATE, detail)
                continue
            seen |= names
        yield outcome


def _check_rejections(reasons: Counter[str], plan: Plan, config: IngestConfig) -> None:
    rejected = reasons.total()
    if rejected <= config.max_reject_fraction * plan.num_inputs and rejected < plan.num_inputs:
        return
    counted = ", ".join(f"{reason} {times}" for reason, times in reasons.most_common())
    raise TooManyRejectsError(
        f"{rejected} of {plan.num_inputs} X-rays were rejected ({counted}); allowed is a part of "
        f"{config.max_reject_fraction}, and one must remain; check source and format, or raise "
        "max_reject_fraction"
    )


def _check_counts(writer: DatasetWriter, plan: Plan) -> None:
    if writer.num_entries != plan.num_inputs:
        raise ArtifactError(
            f"{plan.num_inputs} X-rays came in, {writer.num_entries} are in the data set and "
            "its rejections; this is a fault of ingest, please report it"
        )
