"""Read a DICOM radiograph: header and display grey levels, or the reason why not.

    pixels stored -> modality LUT or rescale -> VOI LUT or window -> MONOCHROME1 inversion
                  -> turned upright by Patient Orientation (PS3.3 C.7.6.1.1.1)

Each map is applied to every value that a pixel could have, never to the pixels, in double precision
and rounded once. The pixels are then looked up, which is exact for any chain and takes two
milliseconds for four million (ADR 0005). Dense is bright.

Pixels keep the stored size, and `to_model` returns the way back to the stored grid, so that a box
found in them is a box in the file's own pixels. If pixels are not square, `to_model` makes them so
before `pad` fits the image; `squash` scales each axis on its own anyway.

Source: DICOM PS3.3 sections C.11.1 (Modality LUT), C.11.2 (VOI LUT) and C.7.5.1.1.2 (padding).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig, GeometryMode, PreprocessingConfig, QualityConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.dataset.quality import gate, gate_header
from chexradinet.dicom.codecs import PixelLayout, Stored, values_of
from chexradinet.dicom.file import (
    BROKEN_HEADER,
    DicomFile,
    implausible,
    integer,
    is_given,
    item_of,
    little_endian,
    numbers,
    open_dicom,
    quiet,
    text,
    unreadable,
    value_of,
)
from chexradinet.dicom.header import read_radiograph_header
from chexradinet.dicom.pixels import Frame, decoded, luma, pixel_layout
from chexradinet.records import Geometry, RadiographHeader

Values = NDArray[np.float64]
Limits = tuple[float, float]
_SIGN_BIT = 0x8000
_LINEARISED = "1.2.840.10008.5.1.4.1.1.12."
"""Angiography and fluoroscopy: their Modality LUT leads back to the dose (PS3.3 C.8.7.1)."""
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


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


def display_pixels(
    frame: Frame, dataset: Dataset, config: DicomConfig
) -> tuple[NDArray[np.uint8], str, tuple[str, ...]]:
    """Map stored values of shape (H, W) to grey levels, and tell which map it was.

    Args:
        frame: Bit patterns, and how to read them.
        dataset: Header with the tables and windows.
        config: Which of several to take.

    Returns:
        Grey levels of shape (H, W), bright where dense, padding 0; a sentence for the record, such
        as `window 1 of 2: LINEAR, centre 550, width 1024`; and what in the header is odd.
    """
    stored, layout = frame.stored, frame.layout
    patterns = np.arange(256 if stored.dtype == np.uint8 else 65536)
    values = values_of(patterns, layout).astype(np.float64)
    padding = _padding(values, frame, dataset)
    scaled, limits, lacking = _modality(values, dataset)
    levels, description, notes = _voi(scaled, dataset, config)
    if layout.bits_stored == 8 and (integer(dataset, "BitsStored") or 8) > 8:
        levels, description = None, "the window is for pixels of more bits than the stream has"
    if levels is None:
        # 8 bits are made to be shown as they are; of more bits, an image alone tells its part.
        as_made = layout.bits_stored == 8 and not layout.is_signed
        low, high = limits if as_made else _own_limits(scaled, stored, padding)
        levels = (scaled - low) / ((high - low) or 1.0)
        description = f"{'full' if as_made else 'own'} range {low:g} to {high:g}: {description}"
    table = np.rint(np.clip(levels, 0.0, 1.0) * 255.0).astype(np.uint8)
    if layout.photometric == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    return _looked_up(stored, table), description + lacking, notes


def _looked_up(stored: Stored, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.LUT(np.ascontiguousarray(stored), table[np.newaxis]), dtype=np.uint8)


def palette_luma(frame: Frame, dataset: Dataset) -> NDArray[np.uint8] | None:
    """Return the luma of a PALETTE COLOR image, or None if a table is missing or damaged."""
    patterns = np.arange(256 if frame.stored.dtype == np.uint8 else 65536)
    values = values_of(patterns, frame.layout).astype(np.float64)
    weights = {"Red": 0.299, "Green": 0.587, "Blue": 0.114}  # ITU-R BT.601
    found = [_lookup_table(dataset, f"{name}PaletteColorLookupTable", values) for name in weights]
    tables = [table for table in found if table is not None]
    if len(tables) < len(found):
        return None
    # Tables of 8 bits are often written under a descriptor that says 16.
    white = max(table.white for table in tables)
    largest = max(table.largest for table in tables)
    if _contradicts(largest, white):
        white = max(largest, 1.0)
    shares = [weight * table.levels for weight, table in zip(weights.values(), tables, strict=True)]
    grey = np.rint(np.clip(sum(shares) / white, 0.0, 1.0) * 255.0).astype(np.uint8)
    return _looked_up(frame.stored, grey)


def _padding(values: Values, frame: Frame, dataset: Dataset) -> NDArray[np.bool_]:
    """Tell which patterns are padding; a limit beyond the pixels' range has the other sign.

    It then stands for the pixel of the same bits, once in the whole word and, if a corner of the
    image holds it, in the bits stored: of 12 bits, -1 is FFFF, and 0FFF only where the border is.
    """
    first = integer(dataset, "PixelPaddingValue")
    if first is None:
        return np.zeros(len(values), dtype=np.bool_)
    last = integer(dataset, "PixelPaddingRangeLimit")
    limits = [first, first if last is None else last]
    within = _between(values, limits)
    if min(limits) >= values.min() and max(limits) <= values.max():
        return within
    words = [limit % len(values) for limit in limits]
    within |= _between(np.arange(len(values)), words)
    span = 1 << frame.layout.bits_stored
    low = values.min()
    reduced = _between(values, [(limit - low) % span + low for limit in limits])
    corners = frame.stored[:: max(1, len(frame.stored) - 1), :: max(1, frame.stored.shape[1] - 1)]
    return within | reduced if reduced[corners].any() else within


def _between(values: NDArray[Any], limits: list[Any]) -> NDArray[np.bool_]:
    return np.asarray((values >= min(limits)) & (values <= max(limits)))


def _modality(values: Values, dataset: Dataset) -> tuple[Values, Limits, str]:
    """Return values after the table or the rescale, the least and greatest, and what it lacks."""
    if text(dataset, "SOPClassUID").startswith(_LINEARISED):
        lacking = "; without the Modality LUT, which is not for display"
        given = is_given(dataset, "ModalityLUTSequence") or is_given(dataset, "RescaleSlope")
        return values, (float(values.min()), float(values.max())), lacking if given else ""
    item = item_of(dataset, "ModalityLUTSequence")
    table = None if item is None else _lookup_table(item, "LUT", values)
    if table is not None:
        white = table.largest if _contradicts(table.largest, table.white) else table.white
        return table.levels, (0.0, white), ""
    lacking = "" if item is None else "; without the Modality LUT, which is damaged"
    slope = numbers(dataset, "RescaleSlope") or [1.0]
    intercept = numbers(dataset, "RescaleIntercept") or [0.0]
    scaled = values * (slope[0] or 1.0) + intercept[0]
    limits = float(scaled.min()), float(scaled.max())
    if not all(map(math.isfinite, limits)):
        raise implausible("Rescale Slope and Intercept lead beyond what a number can hold")
    return scaled, limits, lacking


class _Map(NamedTuple):
    """Levels in [0, 1] by a table or a window, and how sure they are."""

    levels: Values | None
    """None if there are none, or none that can be used."""
    description: str
    """Which they are, or why there are none; empty if the header has none."""
    is_sound: bool = True
    """False if the header contradicts itself about them."""


def _voi(
    values: Values, dataset: Dataset, config: DicomConfig
) -> tuple[Values | None, str, tuple[str, ...]]:
    """Return levels by the chosen table or window, or None and why there are none; and oddities."""
    steps = [_voi_table, _voi_window] if config.prefer_voi_lut else [_voi_window, _voi_table]
    found = [step(values, dataset, config.voi_index) for step in steps]
    notes = []
    if not all(step.is_sound for step in found):
        notes.append("voi_lut_damaged")
    # A table that contradicts itself comes after a window that does not.
    for step in sorted(found, key=lambda step: not step.is_sound):
        if step.levels is not None:
            return step.levels, step.description, tuple(notes)
    reasons = [step.description for step in found if step.description]
    return None, " and ".join(reasons) or "the header has no window", tuple(notes)


def _voi_table(values: Values, dataset: Dataset, index: int) -> _Map:
    item = item_of(dataset, "VOILUTSequence", index)
    if item is None:
        return _Map(None, "")
    table = _lookup_table(item, "LUT", values)
    if table is None or not table.largest:
        return _Map(None, "the VOI LUT is damaged", is_sound=False)
    name = f"VOI LUT {index + 1}"
    if _contradicts(table.largest, table.white) or not table.is_whole:
        levels = table.levels / table.largest
        return _Map(levels, f"{name} by its largest entry, {table.largest:g}", is_sound=False)
    return _Map(table.levels / table.white, name)


def _voi_window(values: Values, dataset: Dataset, index: int) -> _Map:
    pairs = list(
        zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    )
    if not pairs:
        given = is_given(dataset, "WindowCenter") or is_given(dataset, "WindowWidth")
        return _Map(None, "the window is incomplete or damaged" if given else "")
    index = min(index, len(pairs) - 1)
    centre, width = pairs[index]
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if function not in _FUNCTIONS:  # not quoted: it may hold anything
        return _Map(None, "the window has an unknown VOI LUT Function")
    if width <= 0 or (function == "LINEAR" and width < 1):
        return _Map(None, f"the window has a width of {width:g}")
    levels = _windowed(values, centre, width, function)
    name = f"window {index + 1} of {len(pairs)}: {function}, centre {centre:g}, width {width:g}"
    return _Map(levels, name)


def _windowed(values: Values, centre: float, width: float, function: str) -> Values:
    """Apply PS3.3 C.11.2.1.2 or C.11.2.1.3."""
    if function == "SIGMOID":
        exponent = np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(exponent)))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width == 1:
        return np.where(values > centre - 0.5, 1.0, 0.0)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _own_limits(values: Values, stored: Stored, padding: NDArray[np.bool_]) -> Limits:
    """Return the image's own darkest and brightest value; padding has no say."""
    counts = cv2.calcHist(
        [np.ascontiguousarray(stored)], [0], None, [len(values)], [0, len(values)]
    )
    used = values[(counts.ravel() > 0) & ~padding]
    return (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)


class _Table(NamedTuple):
    """A lookup table, applied to every value that a pixel can have."""

    levels: Values
    white: float
    """Largest entry by the descriptor; 0 if that allows none."""
    largest: float
    """Largest entry there is."""
    is_whole: bool
    """Whether there are as many entries as the descriptor says."""


def _contradicts(largest: float, white: float) -> bool:
    """Tell whether entries need more bits than the descriptor says, or leave one unused."""
    return not (white + 1) / 2 <= largest <= white


def _lookup_table(dataset: Dataset, prefix: str, values: Values) -> _Table | None:
    """Look values up in an explicit table; None if a part is missing or entries are too few."""
    descriptor = numbers(dataset, f"{prefix}Descriptor")
    data = value_of(dataset, f"{prefix}Data")
    if len(descriptor) != 3 or data is None:
        return None
    length, first, bits = (int(number) for number in descriptor)
    length = length & 0xFFFF or 65536
    if isinstance(data, bytes):
        data = little_endian(dataset, data)
    entries = _table_entries(data, length, numbers(dataset, f"{prefix}Data"))
    if len(entries) < length:
        return None
    if first >= _SIGN_BIT and values.min() < 0:
        first -= 2 * _SIGN_BIT
    index = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)
    white = float((1 << bits) - 1) if 1 <= bits <= 16 else 0.0
    # One entry more fills a table of bytes up to an even length.
    return _Table(entries[index], white, float(entries.max()), len(entries) <= length + 1)


def _table_entries(data: object, length: int, unpacked: list[float]) -> Values:
    """Return the entries of a table stored as words, or as bytes if there are that many."""
    if isinstance(data, bytes) and len(data) in (length, length + 1):
        return np.frombuffer(data[:length], dtype=np.uint8).astype(np.float64)
    return np.asarray(unpacked, dtype=np.float64) % 65536
