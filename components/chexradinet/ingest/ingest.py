"""Ingest: a source of X-rays and its label table become a data set, each file decoded once.

Every file that comes in goes out: as an image of the data set, or as a rejection with a reason. A
run that was killed continues after its last full shard (`target`), and equal input gives equal
bytes, wherever it lies: of `dataset.json` only `source` tells the build, and the data set's digest
leaves that out.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from chexradinet.config import IngestConfig, SourceFormat, digest_of
from chexradinet.dataset import (
    DATASET_HEAD,
    DatasetInfo,
    HeaderRow,
    ImageRecord,
    Rejection,
    open_dataset,
)
from chexradinet.dataset.deidentification import DeidentificationKey, name_of, optional_key, redact
from chexradinet.dataset.labels import LabelTable, TableRow
from chexradinet.dataset.writing import METHOD, DatasetWriter, assign_splits
from chexradinet.dicom import is_dicomweb
from chexradinet.errors import ArtifactError, SourceError, TooManyRejectsError
from chexradinet.ingest import (
    DICOM_SUFFIXES,
    KINDS_READ,
    Listed,
    Source,
    is_xray_name,
    open_source,
)
from chexradinet.ingest.decoding import (
    Build,
    Decoded,
    Facts,
    Outcome,
    add_review_samples,
    decode_file,
    decode_in_order,
    image_record,
)
from chexradinet.ingest.matching import (
    Plan,
    ambiguous,
    detect_format,
    not_labelled,
    only_named,
    plan_ingest,
    read_table,
)
from chexradinet.ingest.target import (
    Checkpoint,
    finished_dataset,
    note_finished,
    require_target,
    work_digest,
    working_on,
)
from chexradinet.monitoring import timed_stage
from chexradinet.records import RejectReason, Split
from chexradinet.store import FinishedWork

Progress = Callable[[int, int], None]
"""Called with the number of files done and of all files to decode."""

_logger = logging.getLogger(__name__)


@timed_stage("ingest")
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
        progress: Called after each file.
        labels: Folder of the label tables if they do not lie in the source.
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
    if is_dicomweb(source):
        config = config.changed(data_format=SourceFormat.DICOM)
    require_target(target, source, labels)
    key = optional_key(config.data_format is SourceFormat.DICOM)
    with redact(key), open_source(source, config, labels) as opened:
        task = _prepared(opened, source, config, key)
        config = task.config
        info = DatasetInfo(
            findings=config.finding_names if task.table is None else task.table.findings,
            preprocessing=config.preprocessing,
            source=f"source-{name_of(task.key, 'source', source)[:12]}" if task.key else source,
            split_seed=config.split_seed,
            quality=config.quality if task.has_headers else None,
            deidentified=task.key is not None,
            ingest=task.settings,
            finding_details=config.finding_details,
        )
        made = None if finished is None else finished_dataset(finished, task.digest, target)
        work = digest_of([task.digest, info.source])
        kept = FinishedWork("ingest", work, reuse=config.reuse, config=config.store)
        if made is None or made.source != info.source:
            made = open_dataset(target).info if kept.take(target, DATASET_HEAD) else None
        if made is not None:
            _check_rejected(made.counts["rejected"], made.counts["images"], config)
            return made
        with working_on(target, task.digest, config.store) as checkpoint:
            writer = DatasetWriter(
                checkpoint.data, info, config.ingest_shard_size, checkpoint.num_shards
            )
            try:
                _fill(writer, task, checkpoint, progress)
                made = writer.finish()
                if finished is not None:
                    note_finished(finished, task.digest, made)
            finally:
                writer.abandon()
        kept.keep(target)
    _warn_of_gaps(made.counts, made.ingest)
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
    num_unlisted: int
    digest: str

    @property
    def settings(self) -> dict[str, Any]:
        """What `dataset.json` says of how it was made."""
        config = self.config
        unlisted = {"unlisted_folders": self.num_unlisted} if self.num_unlisted else {}
        return {
            "format": config.data_format.value,
            "uncertain": config.uncertain_labels,
            "validation_fraction": config.validation_fraction,
            "test_fraction": config.test_fraction,
            "split_method": METHOD,
            "ignored_files": self.plan.num_ignored,
            **unlisted,
        }

    @property
    def build(self) -> Build:
        """What is the same for all X-rays."""
        return Build(
            side=self.config.preprocessing.image_side,
            box_frame=None if self.table is None else self.table.box_frame,
            key=self.key,
            min_age_years=self.config.quality.min_age_years,
        )


def _prepared(
    opened: Source, source: str, config: IngestConfig, key: DeidentificationKey | None
) -> _Task:
    listed = list(opened.files())
    files = [file for file in listed if not file.name.endswith("/")]
    num_unlisted = len(listed) - len(files)
    if config.data_format is SourceFormat.AUTO:
        chosen = detect_format(opened.tables, (file.name for file in files))
        config = config.changed(data_format=chosen)
        _logger.info("data_format is %s", chosen.value)
    any_dicom = config.data_format is SourceFormat.DICOM
    found: list[Listed] = []
    others: list[Listed] = []
    for file in files:
        taken = is_dicomweb(source) or is_xray_name(file.name, any_dicom)
        (found if taken else others).append(file)
    # One order everywhere: folders, buckets and archives list in different ones.
    found.sort(key=lambda file: os.fsencode(file.name))
    if not found:
        unlisted = f"; {num_unlisted} folders in it cannot be listed" if num_unlisted else ""
        raise SourceError(
            f"{source} holds no image (PNG, JPEG or DICOM){unlisted}; check the folder "
            "and its rights"
        )
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
    if num_unlisted:
        _logger.warning("%d folders cannot be listed and are left out", num_unlisted)
    return _Task(
        source=opened,
        config=config,
        key=key,
        table=table,
        plan=plan,
        has_headers=has_headers,
        num_unlisted=num_unlisted,
        digest=work_digest(found, opened.tables, config, key),
    )


def _fill(
    writer: DatasetWriter, task: _Task, checkpoint: Checkpoint, progress: Progress | None
) -> None:
    """Decode what is not decoded yet, and give everything to the writer."""
    config, plan = task.config, task.plan
    decode = partial(decode_file, task.source, config, task.key)
    fresh = decode_in_order(plan.files[len(checkpoint.restored) :], decode, config.ingest_workers)
    rejections = list(plan.rejections)
    rows: list[TableRow] = []
    kept: list[HeaderRow] = []
    headers: dict[HeaderRow, HeaderRow] = {}
    for settled in outcomes_of(plan, checkpoint.outcomes(fresh), task.build):
        if isinstance(settled, Rejection):
            rejections.append(settled)
        else:
            writer.add(settled.record, settled.decoded.pixels)
            header = settled.decoded.facts.header or HeaderRow()
            # Most headers of a device are equal but for their day: equal ones are kept once.
            kept.append(headers.setdefault(header, header))
            rows.append(_split_row(settled))
        checkpoint.shards_are_full(writer.num_full_shards)
        if progress is not None:
            done = len(rejections) + len(rows) - len(plan.rejections)
            progress(min(done, len(plan.files)), len(plan.files))
    for rejection in rejections:
        name = name_of(task.key, "file", rejection.source_uri)
        writer.reject(replace(rejection, source_uri=name))
    reasons = Counter(rejection.reason.value for rejection in rejections)
    _check_rejected(reasons, len(rows), config)
    _check_counts(plan, rejections, len(rows))
    if config.data_format is SourceFormat.DICOM:
        writer.assign_splits([row.split or Split.TRAIN for row in assign_splits(rows, config)])
    if task.has_headers:
        writer.add_headers([row.image_id for row in rows], kept)
    add_review_samples(writer, rejections, task.source, config, task.key)


class Image(NamedTuple):
    """One X-ray that enters."""

    record: ImageRecord
    row: TableRow | None
    decoded: Decoded


def _split_row(image: Image) -> TableRow:
    record = image.record
    split = None if image.row is None else image.row.split
    return TableRow(
        file="",
        image_id=record.image_id,
        patient_id=record.patient_id,
        split=split,
        labels=record.labels,
    )


def outcomes_of(
    plan: Plan, outcomes: Iterable[Outcome], build: Build
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
        by_uid = waiting.pop(facts.image_id, None)
        named = row or by_uid
        if _names(facts) & seen:
            detail = "an earlier row has the same pixels or the same SOP Instance UID"
            refused: Rejection | None = Rejection(file, RejectReason.DUPLICATE, detail)
        elif row is not None and by_uid is not None:
            refused = ambiguous(file)
        elif named is None:
            refused = not_labelled(file) if plan.needs_row else None
        else:
            refused = _by_table(file, named, facts, build)
        if refused is not None:
            yield refused
            continue
        seen |= _names(facts)
        yield Image(image_record(named, file, facts, build), named, outcome)
    for unused in waiting.values():
        yield only_named(unused)


def _by_table(file: str, row: TableRow, facts: Facts, build: Build) -> Rejection | None:
    """Judge what the table says; the gate has judged what the header says."""
    reason = row.rejected
    if facts.header is not None and row.age is not None and row.age < build.min_age_years:
        reason = reason or RejectReason.UNDER_AGE
    return None if reason is None else Rejection(file, reason, "by the label table")


def _names(facts: Facts) -> set[bytes]:
    return {bytes.fromhex(facts.digest), bytes.fromhex(facts.image_id)} - {b""}


def _check_rejected(rejected: Mapping[str, int], num_images: int, config: IngestConfig) -> None:
    """Refuse a source of which more was rejected, by reason, than allowed, or everything."""
    num_rejected = sum(rejected.values())
    num_inputs = num_rejected + num_images
    if num_rejected <= config.max_reject_fraction * num_inputs and num_images:
        return
    raise TooManyRejectsError(
        f"{num_rejected} of {num_inputs} X-rays were rejected ({format_counts(rejected)}); "
        f"at most a fraction of {config.max_reject_fraction} may be, and one must remain; check "
        "source and format, or raise max_reject_fraction"
    )


def format_counts(rejected: Mapping[str, int]) -> str:
    """Return reasons and their counts as one line, the most frequent first."""
    return ", ".join(f"{reason} {times}" for reason, times in Counter(rejected).most_common())


def _check_counts(plan: Plan, rejections: Sequence[Rejection], num_images: int) -> None:
    """Hold that each input came out once; a row without a file is one only if it is left."""
    unused = (
        sum(item.reason is RejectReason.MISSING for item in rejections) if plan.unmatched else 0
    )
    came_out = len(rejections) + num_images
    if not plan.num_inputs <= came_out <= plan.num_inputs + unused:
        raise ArtifactError(
            f"{plan.num_inputs} X-rays came in, {came_out} are in the data set and its "
            "rejections; this is a fault of ingest, please report it"
        )


def empty_splits(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the splits that a part of the patients was to become and that have no X-ray.

    Args:
        counts: As `dataset.json` has them.
        settings: Its `ingest`; may be empty.
    """
    return [
        split
        for split in ("validation", "test")
        if settings.get(f"{split}_fraction", 0) > 0 and not counts["splits"][split]
    ]


def unseen_findings(counts: Mapping[str, Any]) -> list[str]:
    """Return a sentence part per split that has X-rays but no positive one of some findings."""
    unseen = []
    for split, images in counts["splits"].items():
        names = [name for name, found in counts["positives"].items() if not found[split]]
        if images and names:
            unseen.append(f"{split}: {', '.join(names)}")
    return unseen


def _warn_of_gaps(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Log which splits are empty and which findings they lack."""
    empty = empty_splits(counts, settings)
    if empty:
        _logger.warning(
            "no X-ray is in the %s split, all %d are of %d patients: check whether patient ids are "
            "placeholders, and which splits the table names",
            " and the ".join(empty), counts["images"], counts["patients"],
        )  # fmt: skip
    unseen = unseen_findings(counts)
    if unseen:
        _logger.warning("findings without a positive X-ray in a split: %s", "; ".join(unseen))
