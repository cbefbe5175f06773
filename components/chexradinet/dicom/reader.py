"""Read a DICOM radiograph: header and display grey levels, or the reason why not.

    pixels stored -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 inversion

Pixels keep the stored grid, so that a box found in them is a box in the file's own pixels. Where
pixels are not square, `to_model` makes the image upright in shape before `pad` fits it; `squash`
scales each axis on its own anyway.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chexradinet.config import DicomConfig, GeometryMode, PreprocessingConfig
from chexradinet.dataset.images import fit_to_model
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
    """Grey levels of shape (H, W), bright where dense, on the stored grid."""
    header: RadiographHeader


def read_radiograph(
    source: Path | bytes,
    config: DicomConfig,
    judge: Callable[[RadiographHeader], None] | None = None,
) -> Radiograph:
    """Read a DICOM radiograph as 8-bit grey levels, bright where dense.

    Args:
        source: Path of a file, or its content. Preamble and file meta may be absent.
        config: Which VOI LUT or window to apply where there are several.
        judge: Called with the header before pixels are decoded; what it raises is raised.

    Returns:
        Pixels of shape (H, W) and the header; `header.window` tells which map was applied.

    Raises:
        RejectedImageError: `missing`, `unreadable`, `truncated`, `not_an_image`, `multi_frame` or
            `implausible`, or what `judge` raised; its text holds no value that could identify a
            patient.
    """
    with quiet():
        file = open_dicom(source)
        with _refusing("the header is damaged"):
            layout = pixel_layout(file.dataset)
            header = read_radiograph_header(file, layout)
        if judge is not None:
            judge(header)
        with _refusing("the pixels or a lookup table are damaged"):
            pixels, window, notes = _grey_levels(file, layout, config)
    header = replace(header, window=window, notes=header.notes + notes)
    return Radiograph(pixels=pixels, header=header)


def to_model(
    radiograph: Radiograph, preprocessing: PreprocessingConfig
) -> tuple[NDArray[np.uint8], Geometry]:
    """Fit a radiograph to the model's square, its pixel aspect ratio and spacing accounted for.

    Returns:
        Pixels of shape (S, S) and the map from them to the stored grid, with its spacing.
    """
    pixels, header = radiograph.pixels, radiograph.header
    height, width = pixels.shape
    if preprocessing.geometry is GeometryMode.PAD and abs(header.pixel_aspect_ratio - 1) > 0.01:
        pixels = _square_pixels(pixels, header.pixel_aspect_ratio)
    fitted, geometry = fit_to_model(pixels, preprocessing)
    row_factor, column_factor = height / pixels.shape[0], width / pixels.shape[1]
    return np.asarray(fitted, dtype=np.uint8), replace(
        geometry,
        original_height=height,
        original_width=width,
        row_scale=geometry.row_scale * row_factor,
        column_scale=geometry.column_scale * column_factor,
        row_offset=geometry.row_offset * row_factor,
        column_offset=geometry.column_offset * column_factor,
        row_spacing_mm=header.row_spacing_mm,
        column_spacing_mm=header.column_spacing_mm,
        spacing_source=header.spacing_source,
    )


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
