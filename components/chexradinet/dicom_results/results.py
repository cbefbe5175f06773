"""Scores of one X-ray as DICOM: a structured report and a secondary capture, for an archive.

Deterministic: equal headers and cases give equal bytes, whenever and wherever. Identifiers are
derived from the source's, from the digests of model and preprocessing and from the kind of result.
Both carry the original patient and study, so an archive files them beside the X-ray.

The attributes around the report's content are written here, with every header that scoring accepts.

Source: DICOM PS3.3 sections A.35.13 (Comprehensive 3D SR) and A.8.1 (Secondary Capture Image).
"""

import io
import warnings

import cv2
import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from chexradinet.dicom_results.capture import BANNER, Picture, case_picture
from chexradinet.dicom_results.cases import DicomResults, ScoredCase
from chexradinet.dicom_results.report import (
    DEVICE_NAME,
    REPORT,
    SOURCE_OF_DERIVATION,
    in_ascii,
    model_name,
    private_scheme_item,
    report_content,
)
from chexradinet.dicom_results.source import (
    IMPLEMENTATION_UID,
    SourceImage,
    derived_number,
    derived_uid,
    read_source,
)

STRUCTURED_REPORT = "structured-report/3"
"""Kind in the identifiers; its number rises when the same case would give another report."""
SECONDARY_CAPTURE = "secondary-capture/3"
"""Kind in the identifiers; its number rises when the same case would give another picture."""

_RLE_HEADER_BYTES = 64
_SERIES_NUMBERS = {STRUCTURED_REPORT: 9101, SECONDARY_CAPTURE: 9102}


def write_dicom_results(header: Dataset, case: ScoredCase) -> DicomResults:
    """Write what scoring found in one X-ray as two DICOM files.

    Args:
        header: The original data set as parsed, with the patient's and study's identifiers; pixels
            are not needed. It may lack anything but its SOP Instance UID.
        case: What was found.

    Returns:
        Two files of PS3.10, equal bytes for equal arguments.

    Raises:
        DicomResultError: the header has no SOP Instance UID, as with input that is not DICOM.
        EvaluationError: the heatmap is not a matrix.
    """
    source = read_source(header)
    with warnings.catch_warnings():
        # What pydicom finds odd in a copied value, it quotes.
        warnings.simplefilter("ignore")
        report = _structured_report(source, case)
        capture = _secondary_capture(source, case)
        return DicomResults(
            structured_report=_file(report) + report_content(case, source),
            secondary_capture=_file(capture, RLELossless),
            structured_report_uid=str(report.SOPInstanceUID),
            secondary_capture_uid=str(capture.SOPInstanceUID),
        )


def _structured_report(source: SourceImage, case: ScoredCase) -> Dataset:
    report = _result(source, case, STRUCTURED_REPORT)
    report.SOPClassUID = Comprehensive3DSRStorage
    report.Modality = "SR"
    report.SeriesDescription = "ChexRadiNet scores, not for diagnostic use"
    report.ReferencedPerformedProcedureStepSequence = []
    report.CompletionFlag = "COMPLETE"
    report.VerificationFlag = "UNVERIFIED"
    report.PreliminaryFlag = "PRELIMINARY"
    report.PerformedProcedureCodeSequence = []
    report.CurrentRequestedProcedureEvidenceSequence = [_evidence(source)]
    report.CodingSchemeIdentificationSequence = [private_scheme_item()]
    report.ValueType = "CONTAINER"
    report.ConceptNameCodeSequence = [_code_item(REPORT)]
    report.ContinuityOfContent = "CONTINUOUS"
    template = Dataset()
    template.MappingResource, template.TemplateIdentifier = "DCMR", "1500"
    report.ContentTemplateSequence = [template]
    return report  # its content follows as bytes: no element has a higher tag


def _secondary_capture(source: SourceImage, case: ScoredCase) -> Dataset:
    picture = case_picture(case)
    capture = _result(source, case, SECONDARY_CAPTURE)
    capture.SOPClassUID = SecondaryCaptureImageStorage
    # Not that of the source: whoever asks the archive for radiographs must not get this picture.
    capture.Modality = "OT"
    capture.SeriesDescription = "ChexRadiNet heatmap, not for diagnostic use"
    capture.BodyPartExamined = "CHEST"
    capture.ConversionType = "WSD"
    capture.DateOfSecondaryCapture = capture.ContentDate
    capture.TimeOfSecondaryCapture = capture.ContentTime
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    is_upright = case.geometry == case.geometry.upright
    capture.PatientOrientation = list(source.patient_orientation) if is_upright else ["L", "F"]
    capture.ImageComments = BANNER
    shown = "no heatmap" if case.drawn is None else f"heatmap of {in_ascii(case.drawn.name)}"
    capture.DerivationDescription = (
        f"Radiograph with {shown} and regions by {model_name(case.model)}, "
        f"bundle sha256 {case.model.bundle_digest}"
    )
    reference = _reference(source)
    reference.PurposeOfReferenceCodeSequence = [_code_item(SOURCE_OF_DERIVATION)]
    capture.SourceImageSequence = [reference]
    capture.update(source.lossy)
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.Rows, capture.Columns = picture.shape[:2]
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    capture.PixelData = encapsulate([_rle_frame(picture)])
    capture["PixelData"].is_undefined_length = True
    return capture


def _rle_frame(picture: Picture) -> bytes:
    """Return a frame in RLE (PS3.5 annex G): a segment per colour, each row on its own."""
    planes = cv2.split(picture)
    segments = [bytes(imagecodecs.packbits_encode(plane, axis=-1)) for plane in planes]
    segments = [segment + bytes(len(segment) % 2) for segment in segments]
    starts = np.cumsum([_RLE_HEADER_BYTES, *(len(segment) for segment in segments)])[:-1]
    header = np.zeros(_RLE_HEADER_BYTES // 4, dtype="<u4")
    header[: len(segments) + 1] = [len(segments), *starts]
    return b"".join([header.tobytes(), *segments])


def _result(source: SourceImage, case: ScoredCase, kind: str) -> Dataset:
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
    result.ManufacturerModelName = model_name(model)
    result.DeviceSerialNumber = model.bundle_digest
    result.SoftwareVersions = model.software_version
    made_at = source.local_time(case.content_at)
    result.InstanceCreationDate = result.ContentDate = made_at.strftime("%Y%m%d")
    result.InstanceCreationTime = result.ContentTime = made_at.strftime("%H%M%S")
    if source.utc_offset:
        result.TimezoneOffsetFromUTC = source.utc_offset
    return result


def _reference(source: SourceImage) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.sop_class_uid
    item.ReferencedSOPInstanceUID = source.sop_instance_uid
    return item


def _evidence(source: SourceImage) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = source.series_instance_uid
    series.ReferencedSOPSequence = [_reference(source)]
    study = Dataset()
    study.StudyInstanceUID = source.study_instance_uid
    study.ReferencedSeriesSequence = [series]
    return study


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _file(result: Dataset, transfer_syntax: UID = ExplicitVRLittleEndian) -> bytes:
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
