"""One object of the inbox: read, checked against the plan, decoded and judged.

Runs in processes of its own beside the network, so nothing here imports torch.
"""

import hashlib
import hmac
import time
from dataclasses import replace
from typing import NamedTuple

from chexradinet.config import PreprocessingConfig
from chexradinet.config.nightly import ResultSettings, WorklistIdentifiers
from chexradinet.dataset.images import DECODE_TIMEOUT_S, reject_on_error
from chexradinet.dataset.quality import accepted_picture
from chexradinet.dicom import UID, is_dicomweb
from chexradinet.errors import (
    RejectedImageError,
    StoreAccessError,
    StoreConflictError,
    StoreError,
    StoreIntegrityError,
    StoreItemError,
    StoreNotFoundError,
)
from chexradinet.ingest import MAX_FILE_BYTES, too_large
from chexradinet.nightly import (
    POSTPONED,
    REJECTED,
    VANISHED,
    Excluded,
    XRay,
)
from chexradinet.nightly.ledger import PlannedImage
from chexradinet.records import RejectReason
from chexradinet.store import open_store

_SHORTEST_NAME = 3
_OF_ONE_OBJECT: dict[type[StoreError], tuple[str, str, str]] = {
    StoreNotFoundError: (VANISHED, VANISHED, "gone since it was planned"),
    StoreConflictError: (POSTPONED, "changed", "changed since it was planned"),
    # The listing was allowed, so this is about one object; the next night tries it again.
    StoreAccessError: (POSTPONED, "no_access", "it may not be read"),
    StoreItemError: (POSTPONED, RejectReason.UNAVAILABLE, "the archive failed on it repeatedly"),
}
_IMAGE_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


class Reading(NamedTuple):
    """How the objects of a plan are read; picklable."""

    inbox_uri: str
    preprocessing: PreprocessingConfig
    settings: ResultSettings
    salt: bytes
    """Patients are coded with it."""
    timeout_s: float = DECODE_TIMEOUT_S
    """Most seconds that decoding one object may take in a worker process."""


def read_xray(reading: Reading, image: PlannedImage) -> XRay | Excluded:
    """Read one object of a plan.

    Raises:
        StoreError: the inbox cannot be read any more; this object is not to blame.
    """
    started = time.perf_counter()
    try:
        content = planned_content(reading.inbox_uri, image)
    except RejectedImageError as error:
        return _excluded(image, REJECTED, error.reason, error.detail)
    except StoreError as error:
        if type(error) in _OF_ONE_OBJECT:
            return _excluded(image, *_OF_ONE_OBJECT[type(error)])
        raise _unnamed(error, image) from None
    read = time.perf_counter()
    try:
        with reject_on_error(reading.timeout_s):
            return decode_xray(reading, image.key, content, (started, read))
    except RejectedImageError as error:
        return _excluded(image, REJECTED, error.reason, error.detail)


def planned_content(inbox_uri: str, image: PlannedImage) -> bytes:
    """Return an object's bytes as they were planned.

    Raises:
        StoreConflictError: it has changed since.
        StoreNotFoundError: it is gone.
        RejectedImageError: it is too large, or it is unchanged, and its bytes are not those that
            were written.
    """
    if is_dicomweb(inbox_uri):
        return _archived_content(inbox_uri, image)
    if image.size_bytes > MAX_FILE_BYTES:
        raise too_large(image.size_bytes)
    store, prefix = open_store(inbox_uri)
    damaged = False
    content = bytearray()
    try:
        for chunk in store.chunks(prefix + image.key):
            content += chunk
            if len(content) > image.size_bytes:  # by how much, does not matter
                break
    except StoreIntegrityError:
        damaged = True  # or it grew while it was read: the next line tells
    found = store.stat(prefix + image.key)
    if (found.etag, found.size_bytes) != (image.etag, image.size_bytes):
        raise StoreConflictError("an object of the inbox changed since it was planned")
    if damaged or len(content) != image.size_bytes:
        raise RejectedImageError(RejectReason.UNREADABLE, "its checksum does not hold")
    return bytes(content)


def _archived_content(inbox_uri: str, image: PlannedImage) -> bytes:
    from chexradinet.dicom.web import fetch

    try:
        return fetch(f"{inbox_uri.partition('?')[0]}/{image.key}")
    except StoreIntegrityError as error:
        detail = "the archive does not give it"
        raise RejectedImageError(RejectReason.UNREADABLE, detail) from error


def _unnamed(error: StoreError, image: PlannedImage) -> StoreError:
    """Return an error without the object's name: a sender may have put a patient's into it."""
    text = str(error).replace(image.key, "an object of the inbox")
    stems = (part.partition(".")[0] for part in image.key.split("/"))
    if any(stem in text for stem in stems if len(stem) >= _SHORTEST_NAME):  # in quotes, cut, …
        text = f"the inbox cannot be read ({type(error).__name__}); check it, then run again"
    return type(error)(text)


def _excluded(image: PlannedImage, status: str, reason: str, detail: str) -> Excluded:
    return Excluded(object_key=image.key, status=status, reason=str(reason), detail=detail)


def decode_xray(
    reading: Reading, object_key: str, content: bytes, times: tuple[float, float] = (0.0, 0.0)
) -> XRay:
    """Return the X-ray in a file's bytes, whatever its format.

    Args:
        reading: Preprocessing and quality rules.
        object_key: Name that results carry.
        content: DICOM, PNG or JPEG.
        times: When reading began and ended, by `time.perf_counter`.

    Raises:
        RejectedImageError: it is not an X-ray that the model was made for; it says why.
    """
    if content.startswith(_IMAGE_SIGNATURES):
        xray = _plain_image(reading, object_key, content)
    else:
        xray = _dicom(reading, object_key, content)
    started, read = times
    return replace(xray, read_s=read - started, decode_s=time.perf_counter() - read)


def _plain_image(reading: Reading, object_key: str, content: bytes) -> XRay:
    quality = reading.settings.quality
    _, pixels, geometry = accepted_picture(content, quality, reading.preprocessing)
    key = hashlib.sha256(content).hexdigest()
    return XRay(
        object_key=object_key,
        image_key=key,
        study_uid=key,
        patient_key=key,
        pixels=pixels,
        geometry=geometry,
        quality=("header_absent", "view_unknown"),
    )


def _dicom(reading: Reading, object_key: str, content: bytes) -> XRay:
    # Here, so that PNG and JPEG can be scored where no DICOM reader is installed.
    from chexradinet.dicom.reader import accepted_radiograph, to_model

    radiograph, flags = accepted_radiograph(
        content, reading.preprocessing.dicom, reading.settings.quality
    )
    header = radiograph.header
    pixels, geometry = to_model(radiograph, reading.preprocessing)
    instance = header.sop_instance_uid if UID.match(header.sop_instance_uid) else ""
    key = hashlib.sha256(instance.encode() or content).hexdigest()
    # No more is kept of who it is than the worklist shows.
    shown = reading.settings.worklist.worklist_identifiers
    named = shown != WorklistIdentifiers.NONE
    study = header.study_instance_uid if UID.match(header.study_instance_uid) else key
    # The code tells a plan's patients apart; the ledger alone keeps the salt.
    patient = header.patient_id or f"study {study}"
    return XRay(
        object_key=object_key,
        image_key=key,
        study_uid=study,
        sop_uid=instance,
        patient_key=hmac.new(reading.salt, patient.encode(), hashlib.sha256).hexdigest(),
        pixels=pixels,
        geometry=geometry,
        view=str(header.view),
        age_years=header.age_years,
        sex=header.sex,
        manufacturer=header.manufacturer,
        quality=flags,
        accession=header.accession_number if named else "",
        patient_id=header.patient_id if shown == WorklistIdentifiers.PATIENT else "",
        study_date=header.study_date.isoformat() if named and header.study_date else "",
    )
