"""Ingest: a source of X-rays and its label table become a data set, each file decoded once.

Every file that comes in goes out: as an image of the data set, or as a rejection with a reason. A
run that was killed goes on after its last full shard (`resuming`), and equal input gives equal
bytes, wherever it lies: of `dataset.json` only `source` tells the place, and the data set's digest
leaves that out.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from chexradinet.config import IngestConfig, SourceFormat
from chexradinet.dataset.dataset import DatasetInfo, DatasetWriter, Rejection
from chexradinet.dataset.deidentification import DeidentificationKey
from chexradinet.dataset.labels.header_table import HEADERS, HeaderRow, write_headers
from chexradinet.dataset.labels.table import LabelTable, TableRow
from chexradinet.dataset.naming import discreet, name_of, optional_key
from chexradinet.dataset.splits import assign_splits
from chexradinet.errors import SourceError
from chexradinet.ingest.decoding import decoder
from chexradinet.ingest.doubtful import attach_doubtful
from chexradinet.ingest.placing import Placement
from chexradinet.ingest.plan import Plan, plan_ingest, read_table
from chexradinet.ingest.pools import decode_in_order
from chexradinet.ingest.resuming import (
    Checkpoint,
    finished_dataset,
    note_finished,
    work_digest,
    working_on,
)
from chexradinet.ingest.settling import Image, settle
from chexradinet.ingest.sources import (
    DICOM_SUFFIXES,
    KINDS_READ,
    Listed,
    Source,
    is_archive,
    is_xray_name,
    open_source,
)
from chexradinet.ingest.tallying import check_counts, check_rejected, warn_of_empty_splits
from chexradinet.ingest.targets import require_target
from chexradinet.records import Split
from chexradinet.watching import watched

Progress = Callable[[int, int], None]
"""Called with the number of files done and of all files to decode."""

_logger = logging.getLogger(__name__)


@watched("ingest")
def ingest(
    source: str,
    target: Path,
    config: IngestConfig,
    progress: Progress | None = None,
    labels: str = "",
    finished: Path | None = None,
) -> DatasetInfo:
    """Read a source and write its data set.

    Args:
        source: Folder with images at any depth and label tables at its top: a path, `file://`,
            `s3://`, `minio://`; or `dicomweb://` with study dates.
        target: Directory of the data set; it appears when complete, and replaces an older data set
            and nothing else.
        config: Convention, preprocessing, splits and limits.
        progress: Told after each file.
        labels: Folder of the label tables where they do not lie in the source.
        finished: File that notes what the data set is made from. A run that finds its own work
            noted there, and the data set at `target`, reads no X-ray; None notes nothing.

    Returns:
        What `dataset.json` holds.

    Raises:
        ConfigError: identifiers must be replaced, and the environment holds no key; or `target`
            cannot be made, holds something else, or overlaps what is read.
        SourceError: the source is missing, empty, or no folder that can be read.
        StoreError: a store cannot be read any more; what was finished is kept for the next run.
        LabelTableError: a table is damaged or contradicts itself.
        TooManyRejectsError: more was rejected than allowed, or everything.
    """
    if is_archive(source):
        config = replace(config, format=SourceFormat.DICOM)
    require_target(target, source, labels)
    key = optional_key(config.format is SourceFormat.DICOM)
    with discreet(key), open_source(source, config, labels) as opened:
        task = _prepared(opened, source, config, key)
        info = DatasetInfo(
            findings=config.findings if task.table is None else task.table.findings,
            preprocessing=config.preprocessing,
            source=source if task.key is None else _coded_place(source, task.key),
            split_seed=config.split_seed,
            quality=config.quality if task.has_headers else None,
            deidentified=task.key is not None,
            ingest=task.settings,
        )
        made = None if finished is None else finished_dataset(finished, task.digest, target)
        if made is not None and made.source == info.source:
            check_rejected(made.counts["rejected"], made.counts["images"], config)
            return made
        with working_on(target, task.digest, config.store) as checkpoint:
            writer = DatasetWriter(checkpoint.data, info, config.shard_size, checkpoint.num_shards)
            try:
                _fill(writer, task, checkpoint, progress)
                made = writer.finish()
                if finished is not None:
                    note_finished(finished, task.digest, made)
            finally:
                writer.abandon()
    warn_of_empty_splits(made.counts, made.ingest)
    return made


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One run: what is read, how, and what is planned for it."""

    source: Source
    config: IngestConfig
    key: DeidentificationKey | None
    table: LabelTable | None
    plan: Plan
    has_headers: bool
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """What `dataset.json` says of how it was made."""
        config = self.config
        return {
            "format": config.format.value,
            "uncertain": config.uncertain,
            "validation_fraction": config.validation_fraction,
            "test_fraction": config.test_fraction,
            "ignored_files": self.plan.num_ignored,
        }

    @property
    def place(self) -> Placement:
        """What is the same for all X-rays."""
        return Placement(
            side=self.config.preprocessing.image_side,
            box_frame=None if self.table is None else self.table.box_frame,
            key=self.key,
            min_age_years=self.config.quality.min_age_years,
        )


def _coded_place(source: str, key: DeidentificationKey) -> str:
    return f"source-{name_of(key, 'source', source)[:12]}"


def _prepared(
    opened: Source, source: str, config: IngestConfig, key: DeidentificationKey | None
) -> _Task:
    any_dicom = config.format is SourceFormat.DICOM
    found: list[Listed] = []
    others: list[Listed] = []
    for file in opened.files():
        taken = is_archive(source) or is_xray_name(file.name, any_dicom)
        (found if taken else others).append(file)
    # One order everywhere: folders, buckets and archives list in different ones.
    found.sort(key=lambda file: os.fsencode(file.name))
    if not found:
        raise SourceError(f"{source} holds no image (PNG, JPEG or DICOM); check the folder")
    has_headers = any_dicom or any(file.name.casefold().endswith(DICOM_SUFFIXES) for file in found)
    key = key or optional_key(has_headers)
    table = read_table(opened.tables, config)
    for note, times in ({} if table is None else table.notes).items():
        _logger.warning("label table: %d values set to unknown: %s", times, note)
    plan = plan_ingest(
        table, [file.name for file in found], config, key, [file.name for file in others]
    )
    if plan.num_ignored:
        _logger.warning("%d files of other kinds than %s are ignored", plan.num_ignored, KINDS_READ)
    return _Task(
        source=opened,
        config=config,
        key=key,
        table=table,
        plan=plan,
        has_headers=has_headers,
        digest=work_digest(found, opened.tables, config, key),
    )


def _fill(
    writer: DatasetWriter, task: _Task, checkpoint: Checkpoint, progress: Progress | None
) -> None:
    """Decode what is not decoded yet, and give everything to the writer."""
    config, plan = task.config, task.plan
    decode = decoder(task.source, config, task.key)
    fresh = decode_in_order(
        plan.files[len(checkpoint.restored) :], decode, config.num_workers, task.has_headers
    )
    rejections, images = list(plan.rejections), []
    headers: dict[HeaderRow, HeaderRow] = {}
    for settled in settle(plan, checkpoint.outcomes(fresh), task.place):
        if isinstance(settled, Rejection):
            rejections.append(settled)
        else:
            writer.add(settled.record, settled.decoded.pixels)
            header = settled.decoded.facts.header or HeaderRow()
            # Most headers of a device are equal but for their day: equal ones are kept once.
            shared = headers.setdefault(header, header)
            images.append(_Light(settled.record.image_id, _split_row(settled), shared))
        checkpoint.shards_are_full(writer.num_full_shards)
        if progress is not None:
            done = len(rejections) + len(images) - len(plan.rejections)
            progress(min(done, len(plan.files)), len(plan.files))
    for rejection in rejections:
        name = name_of(task.key, "file", rejection.source_uri)
        writer.reject(replace(rejection, source_uri=name))
    reasons = Counter(rejection.reason.value for rejection in rejections)
    check_rejected(reasons, len(images), config)
    check_counts(plan, rejections, len(images))
    if config.format is SourceFormat.DICOM:
        splits = assign_splits([image.row for image in images], config)
        writer.assign_splits([row.split or Split.TRAIN for row in splits])
    if task.has_headers:
        _attach_headers(writer, images)
        attach_doubtful(writer, rejections, task.source, config, task.key)


class _Light(NamedTuple):
    """What is remembered of an image until all are there."""

    image_id: str
    row: TableRow
    header: HeaderRow


def _split_row(image: Image) -> TableRow:
    record = image.record
    split = None if image.row is None else image.row.split
    return TableRow(
        file="", image_id=record.image_id, patient_id=record.patient_id, split=split, labels={}
    )


def _attach_headers(writer: DatasetWriter, images: Sequence[_Light]) -> None:
    ids, headers = [image.image_id for image in images], [image.header for image in images]
    write_headers(writer.directory, ids, headers)
    writer.attach(HEADERS)
