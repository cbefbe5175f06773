"""Scores of one X-ray as DICOM: a structured report and a secondary capture, for an archive.

Deterministic: equal headers and cases give equal bytes, whenever and wherever. Both carry the
original patient and study, so an archive files them beside the X-ray, whatever its header lacks.

The picture in the capture has the banner above, the radiograph with overlay, and findings below.
Text stands beside the radiograph, not on it, so that it hides nothing; only the name of a further
finding is written at its region.

Source: DICOM PS3.3 sections A.35.13 (Comprehensive 3D SR) and A.8.1 (Secondary Capture Image).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.coding import Code
from pydicom.uid import (
    Comprehensive3DSRStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from chexradinet.dicom.file import quiet
from chexradinet.dicom_results import DicomResults, ScoredCase, ScoredFinding
from chexradinet.dicom_results.report import (
    REPORT,
    SOURCE_OF_DERIVATION,
    in_ascii,
    private_scheme_item,
    report_content,
)
from chexradinet.dicom_results.source import (
    SECONDARY_CAPTURE,
    STRUCTURED_REPORT,
    SourceImage,
    evidence_of,
    file_bytes,
    read_source,
    reference_to,
    result_head,
)
from chexradinet.evaluation.classification import Array
from chexradinet.records import Box, Geometry
from chexradinet.reports.pictures import REGION_COLOR, overlay

Picture = npt.NDArray[np.uint8]

_RLE_HEADER_BYTES = 64
BANNER = "NOT FOR DIAGNOSTIC USE"
"""Burned into every picture."""
LONG_SIDE_PX = 1024
"""Longer side of the radiograph in the picture, in pixels."""
MIN_WIDTH_PX = 480
"""Narrowest picture: the lines of text need it."""
_BANNER_COLOR = (176, 0, 32)
_WHITE = (255, 255, 255)
_GREY = (170, 170, 170)
_WARNING = (255, 130, 130)
_TEXT_PX, _LINE_PX, _BANNER_PX = 20, 30, 46
_MARGIN_PX = 12
_NAMES_PER_LINE = 6


@quiet()
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
    report = _structured_report(source, case)
    capture = _secondary_capture(source, case)
    return DicomResults(
        structured_report=file_bytes(report) + report_content(case, source),
        secondary_capture=file_bytes(capture, RLELossless),
        structured_report_uid=str(report.SOPInstanceUID),
        secondary_capture_uid=str(capture.SOPInstanceUID),
    )


def _structured_report(source: SourceImage, case: ScoredCase) -> Dataset:
    report = result_head(source, case, STRUCTURED_REPORT)
    report.SOPClassUID = Comprehensive3DSRStorage
    report.Modality = "SR"
    report.SeriesDescription = "ChexRadiNet scores, not for diagnostic use"
    report.ReferencedPerformedProcedureStepSequence = []
    report.CompletionFlag = "COMPLETE"
    report.VerificationFlag = "UNVERIFIED"
    report.PreliminaryFlag = "PRELIMINARY"
    report.PerformedProcedureCodeSequence = []
    report.CurrentRequestedProcedureEvidenceSequence = [evidence_of(source)]
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
    capture = result_head(source, case, SECONDARY_CAPTURE)
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
        f"Radiograph with {shown} and regions by {case.model.device_name}, "
        f"bundle sha256 {case.model.bundle_digest}"
    )
    reference = reference_to(source)
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


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


@dataclass(frozen=True, slots=True)
class _Frame:
    """How original pixels lie in the picture of the radiograph, which has square pixels."""

    height: int
    width: int
    row_factor: float
    column_factor: float

    def box(self, original: Box) -> Box | None:
        return Box(
            original.top * self.row_factor,
            original.left * self.column_factor,
            original.bottom * self.row_factor,
            original.right * self.column_factor,
        ).clipped(self.height, self.width)


def case_picture(case: ScoredCase) -> Picture:
    """Draw a case.

    Returns:
        RGB, shape (H', W', 3).
    """
    case = _turned_upright(case)
    frame = _frame(case.geometry)
    shown = case.drawn
    region = frame.box(shown.region) if shown is not None and shown.region else None
    canvas = overlay(_radiograph(case, frame), _heatmap(case, frame), region)
    for finding in case.findings:
        if finding.flagged and finding is not shown and finding.region:
            _draw_further(canvas, finding, frame.box(finding.region))
    missing = max(0, MIN_WIDTH_PX - canvas.shape[1])
    canvas = np.pad(canvas, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))
    width = canvas.shape[1]
    return np.ascontiguousarray(np.vstack([_banner(width), canvas, _caption(case, width)]))


def _turned_upright(case: ScoredCase) -> ScoredCase:
    """Return the case in the coordinates of its upright pixels."""
    upright = case.geometry.upright
    if upright == case.geometry:
        return case
    findings = tuple(
        replace(finding, region=case.geometry.to_upright(finding.region))
        if finding.region
        else finding
        for finding in case.findings
    )
    return replace(case, geometry=upright, findings=findings)


def _frame(geometry: Geometry) -> _Frame:
    """Return the frame of a fixed longer side, with pixels made square if spacing is known."""
    row_mm, column_mm = geometry.row_spacing_mm or 1.0, geometry.column_spacing_mm or 1.0
    aspect = row_mm / column_mm if 0.1 <= row_mm / column_mm <= 10 else 1.0
    height, width = geometry.original_height * aspect, float(geometry.original_width)
    scale = LONG_SIDE_PX / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    return _Frame(rows, columns, rows / geometry.original_height, columns / geometry.original_width)


def _radiograph(case: ScoredCase, frame: _Frame) -> Picture:
    original = (case.geometry.original_height, case.geometry.original_width)
    if case.pixels.shape != original:
        return _from_model(case.pixels, case.geometry, frame, 1.0).astype(np.uint8)
    shrinks = frame.row_factor < 1
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(case.pixels, (frame.width, frame.height), interpolation=how)
    return np.asarray(resized, dtype=np.uint8)


def _heatmap(case: ScoredCase, frame: _Frame) -> npt.NDArray[np.float32] | None:
    if case.heatmap is None or case.drawn is None:
        return None
    finite = np.nan_to_num(np.asarray(case.heatmap, dtype=np.float32), posinf=0, neginf=0)
    cell_px = case.model_side_px / np.array(finite.shape, dtype=np.float64)
    return _from_model(np.maximum(finite, 0), case.geometry, frame, cell_px)


def _from_model(
    values: Array, geometry: Geometry, frame: _Frame, cell_px: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Resample a grid over the model's square into the frame; `cell_px` are its model pixels."""
    cell_rows, cell_columns = np.broadcast_to(cell_px, 2)
    row_step = 1 / (frame.row_factor * geometry.row_scale * cell_rows)
    column_step = 1 / (frame.column_factor * geometry.column_scale * cell_columns)
    row_start = -geometry.row_offset / (geometry.row_scale * cell_rows)
    column_start = -geometry.column_offset / (geometry.column_scale * cell_columns)
    # Centres of pixels lie at half coordinates, on both grids.
    to_values = np.array(
        [
            [column_step, 0, column_start + column_step / 2 - 0.5],
            [0, row_step, row_start + row_step / 2 - 0.5],
        ]
    )
    warped = cv2.warpAffine(
        np.asarray(values, dtype=np.float32),
        to_values,
        (frame.width, frame.height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    highest = float(np.max(values)) if np.size(values) else 0.0
    return np.clip(warped, 0, highest, out=np.asarray(warped, dtype=np.float32))


def _draw_further(canvas: Picture, finding: ScoredFinding, box: Box | None) -> None:
    """Outline the region of a finding whose map is not drawn, with its name inside its top."""
    if box is None:
        return
    top, left = round(box.top), round(box.left)
    corner = (max(left, round(box.right) - 1), max(top, round(box.bottom) - 1))
    # Amber alone is lost on bright bone.
    cv2.rectangle(canvas, (left, top), corner, (0, 0, 0), 5)
    cv2.rectangle(canvas, (left, top), corner, REGION_COLOR, 2)
    label = _line(_words(finding.name), REGION_COLOR)
    left = max(0, min(left, canvas.shape[1] - label.shape[1]))
    top = max(0, min(top, canvas.shape[0] - label.shape[0]))
    canvas[top : top + label.shape[0], left : left + label.shape[1]] = label[
        : canvas.shape[0], : canvas.shape[1]
    ]


def _words(name: str) -> str:
    """Return a name with the signs that the drawn font has."""
    return in_ascii(name.replace("_", " "))


@lru_cache(maxsize=64)
def _font(size_px: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's own TrueType font: every installation draws the same."""
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101 (Pillow's wheels have FreeType)
    return font


@lru_cache(maxsize=256)
def _line(
    text: str,
    color: tuple[int, int, int],
    size_px: float = _TEXT_PX,
    background: tuple[int, int, int] = (0, 0, 0),
    most_px: float = math.inf,
) -> Picture:
    """Return a line of text with a margin around it, shrunk to at most so wide; not to change."""
    margin = round(size_px / 4)
    drawn = _font(size_px).getlength(text)
    font = _font(size_px * min(1.0, (most_px - 2 * margin) / max(drawn, 1.0)))
    width = min(math.ceil(font.getlength(text)) + 2 * margin, most_px)
    size = (int(width), round(1.5 * size_px))
    image = Image.new("RGB", size, background)
    ImageDraw.Draw(image).text((margin, size[1] / 2), text, color, font, anchor="lm")
    return np.asarray(image)


def _banner(width: int) -> Picture:
    line = _line(BANNER, _WHITE, _BANNER_PX, _BANNER_COLOR, 0.9 * width)
    strip = np.full((line.shape[0] + 2 * _MARGIN_PX, width, 3), _BANNER_COLOR, dtype=np.uint8)
    left = (width - line.shape[1]) // 2
    strip[_MARGIN_PX:-_MARGIN_PX, left : left + line.shape[1]] = line
    return strip


def _caption(case: ScoredCase, width: int) -> Picture:
    lines = [(text, _WHITE) for text in finding_lines(case)]
    if case.out_of_distribution:
        distance = case.out_of_distribution_score
        said = "" if distance is None else f" (distance {distance:.1f})"
        lines.insert(0, (f"Out of distribution{said}: scores say little", _WARNING))
    model = case.model
    lines.append((f"ChexRadiNet {model.software_version}, round {model.round}", _GREY))
    lines.append((f"model {model.bundle_digest[:16]}", _GREY))
    strip = np.zeros((len(lines) * _LINE_PX + 2 * _MARGIN_PX, width, 3), dtype=np.uint8)
    for number, (text, color) in enumerate(lines):
        line = _line(text, color, most_px=width - 2 * _MARGIN_PX)
        top = _MARGIN_PX + number * _LINE_PX
        strip[top : top + line.shape[0], _MARGIN_PX : _MARGIN_PX + line.shape[1]] = line
    return strip


def finding_lines(case: ScoredCase) -> list[str]:
    """Return what the picture says about the findings: flagged ones, and those not assessed."""
    flagged = sorted(
        (finding for finding in case.findings if finding.flagged), key=lambda one: -one.probability
    )
    lines = [_finding_line(finding, case) for finding in flagged]
    unknown = [_words(finding.name) for finding in case.findings if finding.flagged is None]
    if len(unknown) == len(case.findings):
        return ["Not assessed: the model has no operating threshold for any finding"]
    if not lines:
        lines.append("No assessed finding reaches its operating threshold")
    for first in range(0, len(unknown), _NAMES_PER_LINE):
        names = ", ".join(unknown[first : first + _NAMES_PER_LINE])
        lines.append(f"Not assessed (no threshold): {names}")
    return lines


def _finding_line(finding: ScoredFinding, case: ScoredCase) -> str:
    kind = "probability" if finding.calibrated else "score, not calibrated,"
    line = f"{_words(finding.name)}: {kind} {finding.probability:.2f}"
    if finding.threshold is not None:
        line += f" (threshold {finding.threshold:.2f}{_trust(finding)})"
    return f"{line} - heatmap shown" if finding is case.drawn else line


def _trust(finding: ScoredFinding) -> str:
    """Return how far the flag can be trusted, by the test split."""
    known = {"sensitivity": finding.sensitivity, "specificity": finding.specificity}
    return "".join(f", {name} {100 * v:.0f}%" for name, v in known.items() if v is not None)
