"""Read a DICOM radiograph: header and display grey levels, or the reason why not.

    pixels stored -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 inversion
                  -> turned upright by Patient Orientation (PS3.3 C.7.6.1.1.1)

Pixels keep the stored size, and `to_model` returns the way back to the stored grid, so that a box
found in them is a box in the file's own pixels. If pixels are not square, `to_model` makes them so
before `pad` fits the image; `squash` scales each axis on its own anyway.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from chexradinet.config import DicomConfig, GeometryMode, PreprocessingConfig, QualityConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.dataset.quality import gate, gate_header
from chexradinet.dicom.codecs import PixelLayout
from chexradinet.dicom.file import BROKEN_HEADER, DicomFile, open_dicom, quiet, unreadable
from chexradinet.dicom.header import read_radiograph_header
from chexradinet.dicom.luts import display_pixels, palette_luma
from chexradinet.dicom.pixels import decoded, luma, pixel_layout
from chexradinet.records import Geometry, RadiographHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiograph:
    """One radiograph as a reader would see it, with what its header says."""

    pixels: NDArray[np.uint8]
    """Grey levels of shape (H, W), bright where dense, turned upright from the stored grid."""
    header: RadiographHeader


def read_radiograph(
    content: bytes,
    config: DicomConfig,
    judge: Callable[[RadiographHeader], None] | None = None,
) -> Radiograph:
    """Read a DICOM radiograph as 8-bit grey levels, bright where dense.

    Args:
        content: A file's bytes. Preamble and file meta may be absent.
        config: Which VOI LUT or window to apply if there are several.
        judge: Called with the header before pixels are decoded; what it raises is raised.

    Returns:
        Pixels of shape (H, W) and the header; `header.window` tells which map was applied.

    Raises:
        RejectedImageError: `unreadable`, `truncated`, `not_an_image`, `multi_frame` or
            `implausible`, or what `judge` raised; its text holds no value that could identify a
            patient.
    """
    with quiet():
        file = open_dicom(content)
        with _refusing("the header is damaged"):
            layout = pixel_layout(file.dataset)
            header = read_radiograph_header(file, layout)
        if judge is not None:
            judge(header)
        with _refusing("the pixels or a lookup table are damaged"):
            pixels, window, notes = _grey_levels(file, layout, config)
    header = replace(header, window=window, notes=header.notes + notes)
    return Radiograph(pixels=_upright(pixels, header), header=header)


def accepted_radiograph(
    content: bytes,
    config: DicomConfig,
    quality: QualityConfig,
    note: Callable[[RadiographHeader], None] | None = None,
) -> tuple[Radiograph, tuple[str, ...]]:
    """Return a radiograph that the quality gate accepts, and its oddities.

    Args:
        content: A file's bytes.
        config: As `read_radiograph` takes it.
        quality: Limits.
        note: Called with the header before anything is judged.

    Raises:
        RejectedImageError: as `read_radiograph` and `gate`.
    """

    def judge(header: RadiographHeader) -> None:
        if note is not None:
            note(header)
        gate_header(header, quality)

    radiograph = read_radiograph(content, config, judge)
    return radiograph, gate(radiograph.header, radiograph.pixels, quality)


def to_model(
    radiograph: Radiograph, preprocessing: PreprocessingConfig
) -> tuple[NDArray[np.uint8], Geometry]:
    """Fit a radiograph to the model's square, its pixel aspect ratio and spacing accounted for.

    Returns:
        Pixels of shape (S, S) and the map from them to the stored grid, with its spacing.
    """
    pixels, header = radiograph.pixels, radiograph.header
    height, width = pixels.shape
    aspect = header.pixel_aspect_ratio
    aspect = 1 / aspect if _is_transposed(header) else aspect
    if preprocessing.geometry is GeometryMode.PAD and abs(aspect - 1) > 0.01:
        pixels = _square_pixels(pixels, aspect)
    fitted, geometry = fit_to_model(pixels, preprocessing)
    row_factor, column_factor = height / pixels.shape[0], width / pixels.shape[1]
    rows = (geometry.row_scale * row_factor, geometry.row_offset * row_factor)
    columns = (geometry.column_scale * column_factor, geometry.column_offset * column_factor)
    if "H" in header.orientation:
        rows = (-rows[0], height - rows[1])
    if "R" in header.orientation:
        columns = (-columns[0], width - columns[1])
    transposed = _is_transposed(header)
    stored_rows, stored_columns = (columns, rows) if transposed else (rows, columns)
    return np.asarray(fitted, dtype=np.uint8), Geometry(
        original_height=width if transposed else height,
        original_width=height if transposed else width,
        row_scale=stored_rows[0],
        column_scale=stored_columns[0],
        row_offset=stored_rows[1],
        column_offset=stored_columns[1],
        row_spacing_mm=header.row_spacing_mm,
        column_spacing_mm=header.column_spacing_mm,
        spacing_source=header.spacing_source,
        transposed=transposed,
    )


def _is_transposed(header: RadiographHeader) -> bool:
    """Tell whether stored rows run along the patient, not across."""
    return header.orientation[0] in "HF"


def _upright(pixels: NDArray[np.uint8], header: RadiographHeader) -> NDArray[np.uint8]:
    """Turn and mirror a stored image so that it shows the patient from the front, head up."""
    turned = pixels.T if _is_transposed(header) else pixels
    turned = turned[::-1] if "H" in header.orientation else turned
    turned = turned[:, ::-1] if "R" in header.orientation else turned
    return np.ascontiguousarray(turned)


def _square_pixels(pixels: NDArray[np.uint8], aspect: float) -> NDArray[np.uint8]:
    """Shrink the axis whose pixels are short, so that all pixels become square."""
    height, width = pixels.shape
    if aspect > 1.0:
        width = max(1, round(width / aspect))
    else:
        height = max(1, round(height * aspect))
    shrunk = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, dtype=np.uint8)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever pydicom raises on damage into a rejection that quotes nothing of the file."""
    try:
        yield
    except BROKEN_HEADER as error:
        raise unreadable(f"{what}: {type(error).__name__}") from None


def _grey_levels(
    file: DicomFile, layout: PixelLayout, config: DicomConfig
) -> tuple[NDArray[np.uint8], str, tuple[str, ...]]:
    frame = decoded(file, layout)
    if layout.is_monochrome:
        pixels, window, notes = display_pixels(frame, file.dataset, config)
        return pixels, window, frame.notes + notes
    if layout.photometric == "PALETTE COLOR":
        looked_up = palette_luma(frame, file.dataset)
        if looked_up is None:
            raise unreadable("the palette is absent, segmented or damaged")
        return looked_up, "palette to luma", frame.notes
    stored = frame.stored
    grey = stored if stored.ndim == 2 else luma(stored.astype(np.uint8, copy=False))
    return np.ascontiguousarray(grey, dtype=np.uint8), "colour to luma", frame.notes
