"""The X-ray that DICOM results are about, and what both results take from it.

Headers met in the wild are poor. What is damaged, too long or of a wrong form comes out empty or
cut, so that the results are valid whatever the header was; a missing study or series gets a derived
UID. Only the image's own UID cannot be replaced. Derived UIDs are UUIDs of version 5 below 2.25,
made from the source's, from the digests of model and preprocessing and from the kind of result, so
a rerun gives the same ones.

Source: DICOM PS3.3 sections C.7.1.1 and C.7.2.1, PS3.5 section 6.2 (what each VR may hold) and
annex B.2 (UUID derived UIDs), RFC 9562 section 5.5.
"""

import io
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian

from chexradinet.dicom.file import BROKEN_HEADER, quiet
from chexradinet.dicom.header import date_of
from chexradinet.dicom_results import DEVICE_NAME, ScoredCase
from chexradinet.errors import DicomResultError

_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_CR = "1.2.840.10008.5.1.4.1.1.1"
_EMPTY_ALLOWED = {
    "AccessionNumber": 16,
    "PatientBirthDate": 8,
    "PatientID": 64,
    "PatientName": 64,
    "PatientSex": 1,
    "ReferringPhysicianName": 64,
    "StudyDate": 8,
    "StudyID": 16,
    "StudyTime": 13,
}
"""Type 2 attributes of patient and study, with the most characters each holds."""
_WHERE_PRESENT = {"IssuerOfPatientID": 64, "PatientAge": 4, "StudyDescription": 64}
"""Type 3 attributes, left out if the source has none."""
_ANATOMICAL = re.compile(r"^[APRLHF]{1,3}$")

STRUCTURED_REPORT = "structured-report/3"
"""Kind in the identifiers; its number rises when the same case would give another report."""
SECONDARY_CAPTURE = "secondary-capture/3"
"""Kind in the identifiers; its number rises when the same case would give another picture."""

_SERIES_NUMBERS = {STRUCTURED_REPORT: 9101, SECONDARY_CAPTURE: 9102}

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "chexradinet")
_UID = re.compile(r"^[0-9]+(\.[0-9]+)+$")
_MAX_UID = 64
_MAX_INTEGER_STRING = 2**31 - 1

IMPLEMENTATION_UID = f"2.25.{uuid.uuid5(_NAMESPACE, 'implementation').int}"
"""Implementation Class UID of every file written."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SourceImage:
    """The scored X-ray. Everything here identifies a patient."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_and_study: Dataset
    """Attributes to copy, each valid; `SpecificCharacterSet` (UTF-8) if one is not ASCII."""
    patient_orientation: tuple[str, ...]
    """Direction of rows and columns, such as `L` and `F`; empty if unknown."""
    lossy: Dataset
    """Attributes that tell of lossy compression in the source's past; empty without."""
    utc_offset: str
    """Timezone Offset From UTC (0008,0201), such as `+0900`; empty if it tells none."""

    def local_time(self, moment: datetime) -> datetime:
        """Return a moment by the clock of the source's dates and times; in UTC if unknown.

        Args:
            moment: A time in any time zone; without one it is UTC.
        """
        known = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if not self.utc_offset:
            return known.astimezone(UTC)
        hours, minutes = int(self.utc_offset[1:3]), int(self.utc_offset[3:])
        east = timedelta(hours=hours, minutes=minutes)
        return known.astimezone(timezone(-east if self.utc_offset[0] == "-" else east))


@quiet()
def read_source(header: Dataset) -> SourceImage:
    """Read what results copy from a header; its pixels are not needed.

    Args:
        header: The original data set as it was parsed, not de-identified.

    Raises:
        DicomResultError: there is no SOP Instance UID that a result could refer to.
    """
    sop_instance_uid = _text(header, "SOPInstanceUID")
    if not is_usable_uid(sop_instance_uid):
        raise DicomResultError(
            "the X-ray has no SOP Instance UID (0008,0018), as DICOM results need to refer to it; "
            "its scores are in the tables all the same: leave DICOM results out for it"
        )
    return SourceImage(
        sop_class_uid=_sop_class(header),
        sop_instance_uid=sop_instance_uid,
        series_instance_uid=_uid(header, "SeriesInstanceUID", sop_instance_uid),
        study_instance_uid=_uid(header, "StudyInstanceUID", sop_instance_uid),
        patient_and_study=_patient_and_study(header),
        patient_orientation=_orientation(header),
        lossy=_lossy(header),
        utc_offset=_utc_offset(header),
    )


def _text(header: Dataset, keyword: str) -> str:
    """Return the first value as text without padding and control characters, else nothing."""
    try:
        value = header.get(keyword)
        first = next(iter(value), "") if isinstance(value, MultiValue | list) else value
        # Surrogates stand for bytes that the declared character set does not have.
        written = str(first).encode("utf-8", "replace").decode() if first is not None else ""
    except BROKEN_HEADER:
        return ""
    printable = "".join(" " if ord(sign) < 32 or sign == "\\" else sign for sign in written)
    return printable.strip()


def _uid(header: Dataset, keyword: str, sop_instance_uid: str) -> str:
    found = _text(header, keyword)
    return found if is_usable_uid(found) else derived_uid(keyword, sop_instance_uid)


def _sop_class(header: Dataset) -> str:
    found = _text(header, "SOPClassUID")
    if is_usable_uid(found):
        return found
    return _DX if _text(header, "Modality").upper() == "DX" else _CR


def _patient_and_study(header: Dataset) -> Dataset:
    copied = Dataset()
    texts = {}
    for keyword, longest in {**_EMPTY_ALLOWED, **_WHERE_PRESENT}.items():
        cleaned = _cleaned(keyword, _text(header, keyword), longest)
        if cleaned or keyword in _EMPTY_ALLOWED:
            texts[keyword] = cleaned
    if not all(text.isascii() for text in texts.values()):
        copied.SpecificCharacterSet = "ISO_IR 192"
    for keyword, text in texts.items():
        setattr(copied, keyword, text)
    return copied


def _cleaned(keyword: str, text: str, longest: int) -> str:
    """Return the text if its attribute may hold it, cut to the longest allowed, else nothing."""
    if keyword.endswith("Date"):
        found = date_of(text)
        return found.isoformat().replace("-", "") if found else ""
    if keyword.endswith("Time"):
        return _time(text)
    if keyword == "PatientSex":
        return text.upper() if text.upper() in ("F", "M", "O") else ""
    if keyword == "PatientAge":
        return text if re.fullmatch(r"\d{3}[DWMY]", text) else ""
    if keyword.endswith("Name"):
        return _person_name(text, longest)
    return text[:longest].strip()


def _time(text: str) -> str:
    """Read `HHMMSS.FFFFFF`, shorter forms of it, and `HH:MM:SS` of ACR-NEMA."""
    match = re.fullmatch(r"(\d{2}):?(?:(\d{2}):?(?:(\d{2})(\.\d{1,6})?)?)?", text, re.ASCII)
    if match is None:
        return ""
    parts = [int(part) for part in match.groups()[:3] if part is not None]
    try:
        hour, minute, second = (*parts, 0, 0)[:3]
        time(hour, minute, second)
    except ValueError:
        return ""
    return "".join(f"{part:02d}" for part in parts) + (match[4] or "")


def _person_name(text: str, longest: int) -> str:
    """Return at most three groups of at most five components, each group cut to its length."""
    groups = ["^".join(group.split("^")[:5])[:longest].strip() for group in text.split("=")[:3]]
    return "=".join(groups).rstrip("=")


def _orientation(header: Dataset) -> tuple[str, ...]:
    try:
        value = header.get("PatientOrientation")
        letters = tuple(str(part) for part in value or ())
    except BROKEN_HEADER:
        return ()
    valid = len(letters) == 2 and all(_ANATOMICAL.match(part) for part in letters)
    return letters if valid else ()


def _utc_offset(header: Dataset) -> str:
    """Read `+HHMM` or `-HHMM` between -1200 and +1400; `-0000` is none (PS3.3 C.12.1.1.1)."""
    found = _text(header, "TimezoneOffsetFromUTC")
    if not re.fullmatch(r"[+-]\d{2}[0-5]\d", found, re.ASCII) or found == "-0000":
        return ""
    return found if -1200 <= int(found) <= 1400 else ""


def _lossy(header: Dataset) -> Dataset:
    """Repeat what the source says, if it also has the ratio that must stand beside it."""
    lossy = Dataset()
    ratio = _text(header, "LossyImageCompressionRatio")
    stated = re.fullmatch(r"\d{1,5}(\.\d{1,6})?", ratio, re.ASCII)
    if stated and _text(header, "LossyImageCompression") == "01":
        lossy.LossyImageCompression = "01"
        lossy.LossyImageCompressionRatio = ratio
    return lossy


def derived_uid(*parts: str) -> str:
    """Return a UID that is equal for equal parts and, but for chance, for no others.

    Args:
        parts: What identifies the thing, such as the source's UID, digests and the kind.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def derived_number(*parts: str) -> int:
    """Return a number in [1, 2^31 - 1] for an Integer String, equal for equal parts."""
    return uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int % _MAX_INTEGER_STRING + 1


def is_usable_uid(text: str) -> bool:
    """Tell whether a file may refer by this UID: digits and dots, at most 64 characters.

    Leading zeros of a component are let pass: archives hold such X-rays, and a reference must
    repeat their UID as it is.
    """
    return len(text) <= _MAX_UID and _UID.match(text) is not None


def result_head(source: SourceImage, case: ScoredCase, kind: str) -> Dataset:
    """Return what both results have: identifiers, patient, study, series, equipment, dates."""
    model = case.model
    what = (model.bundle_digest, model.preprocessing_digest, kind)
    result = Dataset()
    result.update(source.patient_and_study)
    result.StudyInstanceUID = source.study_instance_uid
    result.SeriesInstanceUID = derived_uid(source.study_instance_uid, *what)
    result.SeriesNumber = _SERIES_NUMBERS[kind]
    result.SOPInstanceUID = derived_uid(source.sop_instance_uid, *what)
    # From the source alone, as a study's X-rays may be scored in any order and on several nights.
    result.InstanceNumber = derived_number(source.sop_instance_uid)
    result.Manufacturer = DEVICE_NAME
    result.ManufacturerModelName = model.device_name
    result.DeviceSerialNumber = model.bundle_digest
    result.SoftwareVersions = model.software_version
    made_at = source.local_time(case.content_at)
    result.InstanceCreationDate = result.ContentDate = made_at.strftime("%Y%m%d")
    result.InstanceCreationTime = result.ContentTime = made_at.strftime("%H%M%S")
    if source.utc_offset:
        result.TimezoneOffsetFromUTC = source.utc_offset
    return result


def reference_to(source: SourceImage) -> Dataset:
    """Return the item that refers to the X-ray."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.sop_class_uid
    item.ReferencedSOPInstanceUID = source.sop_instance_uid
    return item


def evidence_of(source: SourceImage) -> Dataset:
    """Return the item of evidence: the X-ray within its series and study."""
    series = Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ReferencedSOPSequence = [reference_to(source)]
    study = Dataset()
    study.StudyInstanceUID = source.study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study


def file_bytes(result: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """Return a data set as a file of PS3.10."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "CHEXRADINET"
    result.file_meta = meta
    result.preamble = bytes(128)
    buffer = io.BytesIO()
    result.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
