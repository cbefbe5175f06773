"""From Pixel Data to stored values: sizes checked first, then one frame taken out and decoded.

Source: DICOM PS3.3 section C.7.6.3 (Image Pixel Module), PS3.5 section 8 and annex A.4.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from chexradinet.dicom.codecs import PixelLayout, Stored, agreed, contradicts_header, decode_frame
from chexradinet.dicom.file import (
    MAX_ELEMENTS,
    DicomFile,
    implausible,
    integer,
    text,
    too_large,
    truncated,
    unreadable,
)
from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

MAX_SAMPLES = 40_000_000
"""Most pixels times colours; the largest detectors have 18 million pixels. JPEG 2000 takes ten
bytes for each while it is decoded."""
MAX_EXPANSION = 4000
"""Most decoded bytes a compressed byte may stand for; a real radiograph stays under 100."""

PHOTOMETRIC = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    *("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
)
"""Photometric Interpretations that are read; records hold no other text."""

_SUPPORTED_BITS = (8, 16)
_KNOWN_BITS = (1, 8, 12, 16, 24, 32, 64)
_ITEM = b"\xfe\xff\x00\xe0"
_HEADER_BYTES = 8
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def pixel_layout(dataset: Dataset) -> PixelLayout:
    """Read and check the attributes that say how pixels are stored.

    Raises:
        RejectedImageError: `multi_frame`, `implausible`, or `unreadable` for depths other than 8
            and 16 bits, for colour deeper than 8 and where it is not known what pixels stand for.
    """
    frames = integer(dataset, "NumberOfFrames")
    if frames is not None and frames > 1:
        raise RejectedImageError(
            RejectReason.MULTI_FRAME, f"{frames} frames; only single-frame images are read"
        )
    allocated = integer(dataset, "BitsAllocated") or 0
    stored = integer(dataset, "BitsStored") or allocated
    high_bit = integer(dataset, "HighBit")
    layout = PixelLayout(
        rows=integer(dataset, "Rows") or 0,
        columns=integer(dataset, "Columns") or 0,
        samples=integer(dataset, "SamplesPerPixel") or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        is_signed=integer(dataset, "PixelRepresentation") == 1,
        is_planar=integer(dataset, "PlanarConfiguration") == 1,
        photometric=text(dataset, "PhotometricInterpretation").upper(),
    )
    _check_size(layout)
    _check_photometric(layout)
    _check_depth(layout)
    return layout


def _check_size(layout: PixelLayout) -> None:
    size = f"{layout.rows}x{layout.columns} px"
    if layout.rows < 1 or layout.columns < 1:
        raise implausible(f"{size}; both must be at least 1")
    if layout.rows * layout.columns * layout.samples > MAX_SAMPLES:
        raise implausible(f"{size}; an X-ray has at most {MAX_SAMPLES // 1_000_000} million")


def _check_photometric(layout: PixelLayout) -> None:
    """Refuse what would be a guess: which end is dense, or which colours the planes are."""
    if not layout.photometric:
        raise unreadable("no Photometric Interpretation, which says whether dense is bright")
    if layout.photometric not in PHOTOMETRIC:  # not quoted: it may hold anything
        raise unreadable(
            f"unknown Photometric Interpretation; supported are {', '.join(PHOTOMETRIC)}"
        )


def _check_depth(layout: PixelLayout) -> None:
    allocated, stored, high = layout.bits_allocated, layout.bits_stored, layout.high_bit
    if allocated in _KNOWN_BITS and allocated not in _SUPPORTED_BITS:
        raise unreadable(f"{allocated} bits allocated; radiographs have 8 or 16")
    if allocated not in _SUPPORTED_BITS or not (1 <= stored <= high + 1 <= allocated):
        raise implausible(f"{stored} bits stored up to bit {high} of {allocated}")
    grey = layout.is_monochrome or layout.photometric == "PALETTE COLOR"
    if layout.samples != (1 if grey else 3):
        raise implausible(f"{layout.samples} samples contradict Photometric Interpretation")
    if not grey and (allocated, stored) != (8, 8):
        raise unreadable(f"colour of {stored} bits; only 8 are read")


class Frame(NamedTuple):
    """The only frame of an image, decoded."""

    stored: Stored
    """Bit patterns of shape (H, W), or (H, W, 3) for colour; padding bits are still there."""
    layout: PixelLayout
    """How to read the patterns: the header's, or the stream's if that contradicts it."""
    notes: tuple[str, ...]
    """Contradictions that did not prevent decoding."""


def decoded(file: DicomFile, layout: PixelLayout) -> Frame:
    """Decode the only frame. YBR images come as their luma, shape (H, W).

    Raises:
        RejectedImageError: `unreadable`, `truncated`, `multi_frame` or `implausible`.
    """
    notes: list[str] = []
    bits: int | None = None
    if file.transfer_syntax.is_encapsulated:
        frame = _frame(file)
        size = layout.rows * layout.columns * layout.samples * layout.bits_allocated // 8
        if size > len(frame) * MAX_EXPANSION:
            raise implausible(f"{len(frame)} bytes for {layout.rows}x{layout.columns} px")
        stored, bits = decode_frame(frame, file.transfer_syntax, layout)
        if contradicts_header(frame, file.transfer_syntax, layout):
            notes.append("stream_contradicts_photometric")
    else:
        stored, excess = _native(file, layout)
        if excess > 1:
            notes.append("excess_pixel_bytes")
    as_read = layout
    if layout.is_monochrome:
        depth = bits or 8 * stored.itemsize
        as_read = agreed(stored, layout, depth, is_from_stream=bits is not None)
    if as_read != layout:
        notes.append("stream_contradicts_bits_stored")
    return Frame(stored, as_read, tuple(notes))


def _native(file: DicomFile, layout: PixelLayout) -> tuple[Stored, int]:
    """Return uncompressed pixels, and how many bytes follow them."""
    halved = layout.photometric == "YBR_FULL_422"
    if halved and layout.columns % 2:
        raise implausible(f"{layout.columns} columns; colour that two share needs an even number")
    samples = 2 if halved else layout.samples
    row_bytes = layout.columns * samples * layout.bits_allocated // 8
    expected = layout.rows * row_bytes
    words = layout.bits_allocated == 16 or file.pixel_vr == "OW"
    swapped = words and not file.transfer_syntax.is_little_endian
    data = file.pixel_data
    if swapped:
        data = data[: len(data) // 2 * 2]
    if data[:4] == _ITEM and len(data) != expected:
        raise unreadable("the pixels are compressed; the transfer syntax says they are not")
    excess = _excess((len(data), len(file.pixel_data) + file.missing_bytes), expected)
    data = data[: expected + expected % 2]
    if swapped:
        data = np.frombuffer(data, dtype=">u2").astype("<u2").data.cast("B")
    flat: Stored = np.frombuffer(
        data, dtype=f"<u{layout.bits_allocated // 8}", count=expected * 8 // layout.bits_allocated
    )
    return _shaped(flat, layout), excess


def _shaped(flat: Stored, layout: PixelLayout) -> Stored:
    if layout.photometric == "YBR_FULL_422":
        return flat.reshape(layout.rows, -1, 4)[:, :, :2].reshape(layout.rows, layout.columns)
    if layout.samples == 1:
        return flat.reshape(layout.rows, layout.columns)
    if layout.is_planar:
        planes = flat.reshape(3, layout.rows, layout.columns)
        return planes[0] if layout.photometric == "YBR_FULL" else np.moveaxis(planes, 0, -1)
    pixels = flat.reshape(layout.rows, layout.columns, 3)
    return pixels[:, :, 0] if layout.photometric == "YBR_FULL" else pixels


def _excess(lengths: tuple[int, int], expected: int) -> int:
    """Return how many bytes follow the pixels; up to another frame they are padding (ADR 0015).

    Args:
        lengths: Bytes at hand, and bytes that the element should have.
        expected: Bytes that the size needs.
    """
    found, given = lengths
    if found < expected <= given:
        raise truncated(f"{found} of {expected} bytes of pixels")
    if given < expected:
        raise implausible(f"{given} bytes of pixels; the size needs {expected}")
    if given >= 2 * expected:
        detail = f"{given // expected} frames by the length of the pixels; one is needed"
        raise RejectedImageError(RejectReason.MULTI_FRAME, detail)
    return given - expected


def _frame(file: DicomFile) -> bytes:
    """Join the fragments of the only frame.

    The offset table, the first item, is not used: writers fill it with an entry for each fragment
    or for the end, or leave it out. A stream tells itself where it begins.
    """
    fragments = list(islice(_fragments(file.pixel_data), MAX_ELEMENTS + 1))
    if len(fragments) > MAX_ELEMENTS:
        raise too_large(f"more than {MAX_ELEMENTS} fragments of pixels")
    if fragments and not _begins_stream(fragments[0]):
        del fragments[0]
    num_frames = sum(map(_begins_stream, fragments))
    if num_frames > 1:
        detail = f"{num_frames} streams in Pixel Data; one is needed"
        raise RejectedImageError(RejectReason.MULTI_FRAME, detail)
    if not any(map(len, fragments)):
        if len(file.pixel_data) > _HEADER_BYTES:
            raise unreadable("Pixel Data hold no fragment")
        raise truncated("Pixel Data hold no fragment")
    return b"".join(fragments)


def _fragments(data: memoryview) -> Iterator[memoryview]:
    position = 0
    while data[position : position + 4] == _ITEM and position + _HEADER_BYTES <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        position += _HEADER_BYTES
        if position + length > len(data):
            raise truncated(f"a fragment has {len(data) - position} of {length} bytes")
        yield data[position : position + length]
        position += length


def _begins_stream(fragment: memoryview) -> bool:
    """Tell whether a JPEG, JPEG-LS, JPEG 2000 or RLE stream begins here."""
    head = bytes(fragment[:12])
    is_rle = len(fragment) >= 64 and 1 <= head[0] <= 15 and head[1:8] == b"\0\0\0\x40\0\0\0"
    return is_rle or head.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51", _JP2))


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of red, green and blue of shape (H, W, 3) (ITU-R BT.601)."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
