"""The files of a source to model pixels and records of the data set, or to the reason why not.

Files are decoded in worker processes, in order and with bounded memory, never in this process: a
file that crashes a decoder, hangs in it or fills the memory costs itself, not the run. Each file
has a limit of time, and each worker of memory. What comes out of a DICOM header is coded in the
worker already, so that no identifier leaves it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import GeometryMode, IngestConfig, PreprocessingConfig, SourceFormat
from chexradinet.dataset import HeaderRow, ImageRecord, Rejection
from chexradinet.dataset.deidentification import (
    DeidentificationKey,
    coarse_age,
    coded,
    deidentification_key,
    deidentified_ids,
    name_of,
)
from chexradinet.dataset.images import fit_to_model, pixel_digest, read_image, reject_on_error
from chexradinet.dataset.labels import TableRow
from chexradinet.dataset.quality import accepted_picture
from chexradinet.dataset.writing import DatasetWriter
from chexradinet.dicom import MAX_FAILURES_IN_A_ROW
from chexradinet.errors import RejectedImageError, StoreUnavailableError
from chexradinet.ingest import DICOM_SUFFIXES, Source
from chexradinet.parallel import (
    KEPT_BYTES,
    Failure,
    Job,
    available_memory_bytes,
    in_processes,
    workers_for,
)
from chexradinet.records import (
    Box,
    Geometry,
    LabelledBox,
    RadiographHeader,
    RejectReason,
    Split,
    View,
)

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_REVIEWED = (RejectReason.INVERTED, RejectReason.NOT_FRONTAL)
"""Judged by a rule that may err; the others are facts."""
_MAX_EACH = 12
"""Pictures kept of each reason: the first in the order of the source."""
_SAMPLE_SIDE_PX = 200
_FAILURES = {
    Failure.CRASHED: RejectReason.UNREADABLE,
    Failure.TOO_SLOW: RejectReason.TOO_SLOW,
    Failure.KILLED: RejectReason.TOO_LARGE,
}
FEW_FILES = 64
"""So many are decoded by one worker."""

_MOST_WORKER_BYTES, _LEAST_WORKER_BYTES = 2 << 30, 512 << 20
"""Most that a worker may allocate, if there is so much, and in any case."""
_WORKER_BYTES, _OWN_BYTES = KEPT_BYTES + (256 << 20), 1 << 30
"""Most that a worker holds on 3000x2500 files of 16 bits (measured: 230 MiB, beside what it keeps
freed); and what this process needs beside them."""


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is kept of one X-ray beside its pixels."""

    digest: str
    """SHA-256 of the original pixels."""
    geometry: Geometry
    image_id: str = ""
    """Code of the SOP Instance UID, or of the pixels if a header has none; empty without one."""
    patient_id: str = ""
    """Code; empty without a header."""
    study_id: str = ""
    """Code; empty without a header."""
    view: View = View.UNKNOWN
    """From the header, like age and sex: what a table leaves open."""
    age: float | None = None
    sex: str = ""
    header: HeaderRow | None = None
    """None for files that are not DICOM."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One X-ray, ready for the data set."""

    facts: Facts
    pixels: NDArray[np.uint8] | None
    """Model pixels, shape (S, S); None if a finished shard holds them."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One file that is no X-ray for the data set; returned, not raised, as it crosses processes."""

    reason: str
    """A value of `RejectReason`."""
    detail: str
    """What was wrong, without patient data."""
    image_id: str = ""
    """Code of the SOP Instance UID, if the header was read."""


Outcome = Decoded | Refused | RejectedImageError
"""An X-ray, or why it is none; an error only of a file that killed the process it was read in."""


def _is_dicom(file: str, content: bytes, config: IngestConfig) -> bool:
    """Tell whether a file is to be read as DICOM: by its suffix, and anyhow in a DICOM source."""
    if file.casefold().endswith(DICOM_SUFFIXES):
        return True
    return config.data_format is SourceFormat.DICOM and not content.startswith(_PICTURES)


def decode_file(
    source: Source, config: IngestConfig, key: DeidentificationKey | None, file: str
) -> Outcome:
    """Read and decode one file of a source; the key makes codes, only DICOM files need it."""
    try:
        content = source.read(file)
        with reject_on_error(config.decode_timeout_s):
            if _is_dicom(file, content, config):
                return _decode_dicom(content, config, key or deidentification_key())
            return _decode_picture(content, config)
    except RejectedImageError as error:
        return Refused(error.reason, error.detail)


def _decode_picture(content: bytes, config: IngestConfig) -> Decoded:
    original, pixels, geometry = accepted_picture(content, config.quality, config.preprocessing)
    return Decoded(Facts(digest=pixel_digest(original), geometry=geometry), pixels)


def _decode_dicom(
    content: bytes, config: IngestConfig, key: DeidentificationKey
) -> Decoded | Refused:
    seen: list[RadiographHeader] = []
    try:
        return _radiograph(content, config, key, seen.append)
    except RejectedImageError as error:
        uids = [header.sop_instance_uid for header in seen if header.sop_instance_uid]
        image_id = coded(key, "image", uids[0]) if uids else ""
        return Refused(error.reason, error.detail, image_id)


def _radiograph(
    content: bytes,
    config: IngestConfig,
    key: DeidentificationKey,
    note: Callable[[RadiographHeader], None],
) -> Decoded:
    # Here, so that folders of PNG and JPEG are read where pydicom is absent.
    from chexradinet.dicom.reader import accepted_radiograph, to_model

    radiograph, flags = accepted_radiograph(
        content, config.preprocessing.dicom, config.quality, note
    )
    pixels, geometry = to_model(radiograph, config.preprocessing)
    digest = pixel_digest(radiograph.pixels)
    return Decoded(_facts(radiograph.header, flags, (digest, geometry), key), pixels)


def _facts(
    header: RadiographHeader,
    flags: tuple[str, ...],
    image: tuple[str, Geometry],
    key: DeidentificationKey,
) -> Facts:
    digest, geometry = image
    if not header.sop_instance_uid:
        header = replace(header, sop_instance_uid=digest)
    ids = deidentified_ids(header, key)
    return Facts(
        digest=digest,
        geometry=geometry,
        image_id=ids.image_id,
        patient_id=ids.patient_id,
        study_id=ids.study_id,
        view=header.view,
        age=coarse_age(header.age_years),
        sex=header.sex,
        header=HeaderRow(
            study_date=ids.study_date.isoformat() if ids.study_date else "",
            manufacturer=header.manufacturer,
            model=header.model,
            photometric_interpretation=header.photometric_interpretation,
            transfer_syntax=header.transfer_syntax,
            spacing_source=header.spacing_source,
            pixel_aspect_ratio=header.pixel_aspect_ratio,
            window=header.window,
            flags="|".join(flags),
        ),
    )


def decode_in_order(
    files: Sequence[Item], decode: Callable[[Item], Result], num_workers: int
) -> Iterator[Result | RejectedImageError]:
    """Yield the outcome of each file, in order; a file that ends its process is a rejection.

    Args:
        files: What `decode` takes, such as names; a few per worker are decoded ahead.
        decode: Picklable, as a `partial` of `decode_file`.
        num_workers: Processes; 0 takes one per core, as far as memory allows, or one for few files.

    Raises:
        WorkerError: no process can be started.
        StoreUnavailableError: the archive failed on several files in a row.
    """
    if num_workers == 0:
        num_workers = 1 if len(files) <= FEW_FILES else workers_for(_WORKER_BYTES, _OWN_BYTES)
    share = (available_memory_bytes() - _OWN_BYTES) // num_workers
    job: Job[Item, Result | RejectedImageError] = Job(
        work=decode,
        failed=_failed,
        memory_bytes=max(_LEAST_WORKER_BYTES, min(_MOST_WORKER_BYTES, share)),
        preload=(__name__, "chexradinet.dicom.reader"),
    )
    in_a_row = 0
    for outcome in in_processes(files, job, num_workers):
        failed = getattr(outcome, "reason", "") == RejectReason.UNAVAILABLE
        in_a_row = in_a_row + 1 if failed else 0
        if in_a_row == MAX_FAILURES_IN_A_ROW:
            raise StoreUnavailableError(
                f"the archive failed on {in_a_row} X-rays in a row; bring it back, then run again"
            )
        yield outcome


def _failed(failure: Failure) -> RejectedImageError:
    return RejectedImageError(_FAILURES[failure], failure.value)


@dataclass(frozen=True, kw_only=True)
class Build:
    """What is the same for all X-rays of a source."""

    side: int
    """Height and width of model pixels."""
    box_frame: tuple[int, int] | None
    """Height and width of the image that boxes are measured in; None: the file."""
    min_age_years: float = 0.0
    """Youngest patient of a DICOM file, by the table's age."""
    key: DeidentificationKey | None
    """Makes codes of the source's names; None keeps them."""


def image_record(row: TableRow | None, file: str, facts: Facts, build: Build) -> ImageRecord:
    """Return the record of one X-ray.

    A table's patient goes before the header's, as its author chose it to tell patients apart; a
    header's study and image go before the table's, as they are the same in every table.

    Args:
        row: What the tables say, with a split if one is known; None if they are silent.
        file: Place of the file, relative to the source.
        facts: What is known from the file.
        build: What is the same for all of them.
    """
    key = build.key
    row = row or TableRow(file=file, image_id=file, patient_id="", labels={})
    geometry = _with_extent(facts.geometry, row.extent_mm)
    patient = name_of(key, "patient", row.patient_id) or facts.patient_id
    age = row.age if key is None else coarse_age(row.age)
    return ImageRecord(
        image_id=facts.image_id or name_of(key, "image", row.image_id),
        patient_id=patient or name_of(key, "patient", facts.digest),
        study_id=facts.study_id or name_of(key, "study", row.study_id),
        view=row.view or facts.view,
        age=facts.age if age is None else age,
        sex=row.sex or facts.sex,
        split=row.split or Split.TRAIN,
        source_uri=name_of(key, "file", file),
        sha256=facts.digest,
        labels=row.labels,
        boxes=_placed_boxes(row.boxes, build.box_frame, geometry, build.side),
        geometry=geometry,
    )


def _placed_boxes(
    boxes: tuple[LabelledBox, ...],
    box_frame: tuple[int, int] | None,
    geometry: Geometry,
    side: int,
) -> tuple[LabelledBox, ...]:
    """Return boxes in model pixels, clipped to the image; one that lies outside is left out."""
    frame = box_frame or (geometry.original_height, geometry.original_width)
    down = geometry.original_height / frame[0]
    across = geometry.original_width / frame[1]
    placed = []
    for item in boxes:
        box = item.box
        original = Box(box.top * down, box.left * across, box.bottom * down, box.right * across)
        inside = geometry.to_model(original).clipped(side, side)
        if inside is not None:
            placed.append(LabelledBox(item.finding, inside))
    return tuple(placed)


def _with_extent(geometry: Geometry, extent_mm: tuple[float, float] | None) -> Geometry:
    """Return the geometry with the spacing that follows from the exposed field, if known."""
    if extent_mm is None or geometry.row_spacing_mm is not None:
        return geometry
    return replace(
        geometry,
        row_spacing_mm=extent_mm[0] / geometry.original_height,
        column_spacing_mm=extent_mm[1] / geometry.original_width,
    )


def add_review_samples(
    writer: DatasetWriter,
    rejections: Sequence[Rejection],
    source: Source,
    config: IngestConfig,
    key: DeidentificationKey | None,
) -> None:
    """Write pictures of doubtful rejects into a data set; nothing if there are none.

    Args:
        writer: Writer of the data set.
        rejections: Rejections, with names as the source has them.
        source: Where the files are read from once more.
        config: How they are shown.
        key: Codes the names.
    """
    chosen = [
        item
        for reason in _REVIEWED
        for item in [one for one in rejections if one.reason is reason][:_MAX_EACH]
    ]
    files = [item.source_uri for item in chosen]
    # A view that the header tells was rejected before its pixels were decoded: limits hold here.
    decoded = decode_in_order(files, partial(_picture, source, config), config.ingest_workers)
    names, pictures = [], []
    for item, picture in zip(chosen, decoded, strict=True):
        if isinstance(picture, np.ndarray):
            names.append((name_of(key, "file", item.source_uri), item.reason.value))
            pictures.append(picture)
    if pictures:
        writer.add_doubtful(names, pictures)


def _picture(source: Source, config: IngestConfig, file: str) -> NDArray[np.uint8] | None:
    """Return a small picture; None for what cannot be read or says that it carries text."""
    small = PreprocessingConfig(image_side=_SAMPLE_SIDE_PX, geometry=GeometryMode.PAD)
    try:
        content = source.read(file)
        with reject_on_error(config.decode_timeout_s):
            if not _is_dicom(file, content, config):
                return fit_to_model(read_image(content), small)[0].astype(np.uint8)
            return _radiograph_picture(content, config, small)
    except RejectedImageError:
        return None


def _radiograph_picture(
    content: bytes, config: IngestConfig, small: PreprocessingConfig
) -> NDArray[np.uint8] | None:
    from chexradinet.dicom.reader import read_radiograph, to_model

    radiograph = read_radiograph(content, config.preprocessing.dicom)
    if radiograph.header.burned_in_annotation == "YES":
        return None
    return to_model(radiograph, small)[0]
