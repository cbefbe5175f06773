"""The picture in a secondary capture: banner above, radiograph with overlay, findings below.

Text stands beside the radiograph, not on it, so that it hides nothing; only the name of a further
finding is written at its region. Deterministic: equal cases give equal pixels.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.dicom_results.cases import ScoredCase, ScoredFinding
from chexradinet.evaluation.classification import Array
from chexradinet.records import Box, Geometry
from chexradinet.reports.overlay import REGION_COLOR, overlay

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
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE_PX = 30
_MARGIN_PX = 12
_TEXT_SCALE = 0.62

Picture = npt.NDArray[np.uint8]


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
    canvas = _centred(canvas, MIN_WIDTH_PX)
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
    """Return the frame of a fixed longer side, with pixels made square where spacing is known."""
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
    warped = _from_model(np.maximum(finite, 0), case.geometry, frame, cell_px)
    return np.maximum(warped, 0).astype(np.float32)


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
    return np.clip(np.asarray(warped, dtype=np.float32), 0, highest)


def _draw_further(canvas: Picture, finding: ScoredFinding, box: Box | None) -> None:
    """Outline the region of a finding whose map is not drawn, with its name inside its top."""
    if box is None:
        return
    top, left = round(box.top), round(box.left)
    corner = (max(left, round(box.right) - 1), max(top, round(box.bottom) - 1))
    # Amber alone is lost on bright bone.
    cv2.rectangle(canvas, (left, top), corner, (0, 0, 0), 5)
    cv2.rectangle(canvas, (left, top), corner, REGION_COLOR, 2)
    label = _words(finding.name)
    (width, height), _ = cv2.getTextSize(label, _FONT, _TEXT_SCALE, 1)
    left = max(0, min(left, canvas.shape[1] - width - 8))
    top = max(0, min(top, canvas.shape[0] - height - 10))
    cv2.rectangle(canvas, (left, top), (left + width + 8, top + height + 10), (0, 0, 0), -1)
    place = (left + 4, top + height + 4)
    cv2.putText(canvas, label, place, _FONT, _TEXT_SCALE, REGION_COLOR, 1, cv2.LINE_AA)


def _words(name: str) -> str:
    """Return a name with the signs that the drawn font has."""
    return name.replace("_", " ").encode("ascii", "replace").decode()


def _centred(canvas: Picture, min_width: int) -> Picture:
    missing = max(0, min_width - canvas.shape[1])
    sides = ((0, 0), (missing // 2, missing - missing // 2), (0, 0))
    return np.pad(canvas, sides)


def _banner(width: int) -> Picture:
    (drawn, height), _ = cv2.getTextSize(BANNER, _FONT, 1.0, 2)
    scale = min(1.4, 0.9 * width / drawn)
    text_height = round(height * scale)
    strip = np.full((text_height + 4 * _MARGIN_PX, width, 3), _BANNER_COLOR, dtype=np.uint8)
    place = (round((width - drawn * scale) / 2), text_height + 2 * _MARGIN_PX)
    cv2.putText(strip, BANNER, place, _FONT, scale, _WHITE, 3, cv2.LINE_AA)
    return strip


def _caption(case: ScoredCase, width: int) -> Picture:
    lines = [(text, _WHITE) for text in _finding_lines(case)]
    if case.out_of_distribution:
        lines.insert(0, (_unlike_line(case), _WARNING))
    model = case.model
    lines.append((f"ChexRadiNet {model.software_version}, round {model.round}", _GREY))
    lines.append((f"model {model.bundle_digest[:16]}", _GREY))
    strip = np.zeros((len(lines) * _LINE_PX + 2 * _MARGIN_PX, width, 3), dtype=np.uint8)
    for number, (text, color) in enumerate(lines, start=1):
        (drawn, _), _ = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
        scale = _TEXT_SCALE * min(1.0, (width - 2 * _MARGIN_PX) / drawn)
        place = (_MARGIN_PX, number * _LINE_PX)
        cv2.putText(strip, text, place, _FONT, scale, color, 1, cv2.LINE_AA)
    return strip


def _unlike_line(case: ScoredCase) -> str:
    distance = case.out_of_distribution_score
    said = "" if distance is None else f" (distance {distance:.1f})"
    return f"Out of distribution{said}: scores say little"


def _finding_lines(case: ScoredCase) -> list[str]:
    flagged = [finding for finding in case.findings if finding.flagged]
    flagged.sort(key=lambda finding: -finding.probability)
    lines = [_finding_line(finding, case) for finding in flagged]
    return lines or ["No finding reaches its operating threshold"]


def _finding_line(finding: ScoredFinding, case: ScoredCase) -> str:
    kind = "probability" if finding.calibrated else "score, not calibrated,"
    line = f"{_words(finding.name)}: {kind} {finding.probability:.2f}"
    if finding.threshold is not None:
        line += f" (threshold {finding.threshold:.2f})"
    return f"{line} - heatmap shown" if finding is case.drawn else line
