"""One compressed frame to the integers it stores.

Every codec is imagecodecs', whose libraries (libjpeg-turbo, CharLS, OpenJPEG) carry
permissive licences and survive mutated streams once two things hold, which are checked first:
the size in the stream is the size in the header, so nothing larger is allocated, and the end marker
is there (`whole_stream`). RLE is taken apart here, because imagecodecs'
own reader of DICOM RLE trusts the segment offsets and crashes on wrong ones. OpenJPEG reads HTJ2K,
because imagecodecs drops the errors of its faster OpenJPH and returns what it has (ADR 0005).

Source: DICOM PS3.5 annexes A.4 and G.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from chexradinet.dicom.file import implausible, truncated, unreadable
from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

Stored = NDArray[np.unsignedinteger]
"""Stored pixels as bit patterns, uint8 or uint16: signed values are in two's complement."""

_JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
_JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_HTJ2K = {uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000} | _HTJ2K

Head = tuple[int, int, int, int]
"""Rows, columns, components and bits of a sample."""

_LOSSY_FRAMES = {0xC0, 0xC1, 0xC2}
_FRAMES = _LOSSY_FRAMES | {0xC3, 0xF7}
_STANDALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}
_JFIF, _ADOBE = (0xE0, b"JFIF\0"), (0xEE, b"Adobe")
_ADOBE_TRANSFORM = 11
_END = b"\xff\xd9"
_PADDING_BYTES = 64
_NO_RUN, _LONGEST_RUN = 128, 128
_MAX_SAMPLE_ROWS = 256
_BYTE = 8
_CODESTREAM = b"\xff\x4f\xff\x51"
_TILE_PART = b"\xff\x90"
_BROKEN_STREAM = (
    *(imagecodecs.Jpeg8Error, imagecodecs.JpeglsError, imagecodecs.Jpeg2kError),
    *(MemoryError, NotImplementedError, ValueError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How pixels are stored, checked for contradictions."""

    rows: int
    columns: int
    samples: int
    """1 for grey or palette, 3 for colour."""
    bits_allocated: int
    """8 or 16."""
    bits_stored: int
    high_bit: int
    is_signed: bool
    is_planar: bool
    """Whether colours lie plane by plane instead of pixel by pixel."""
    photometric: str
    """Photometric Interpretation, one of `PHOTOMETRIC`."""

    @property
    def is_monochrome(self) -> bool:
        """Whether values are grey levels, to be windowed."""
        return self.photometric.startswith("MONOCHROME")


def decode_frame(frame: bytes, syntax: uid.UID, layout: PixelLayout) -> tuple[Stored, int | None]:
    """Decode one compressed frame.

    Args:
        frame: The frame's fragments, joined.
        syntax: Its transfer syntax.
        layout: What the header announces.

    Returns:
        Grey frames as (H, W); colour as (H, W, 3), or as luma (H, W) if the stream holds it.
        And the bits of a sample that the stream tells; None for RLE, which does not.

    Raises:
        RejectedImageError: `unreadable`, `truncated` or `implausible`.
    """
    if syntax == uid.RLELossless:
        return _luma_plane(_run_lengths(frame, layout), layout), None
    if syntax in _JPEG_2000:
        frame = codestream(frame)
    elif syntax not in _JPEG | _JPEG_LS:
        raise unreadable(f"no decoder for {syntax.name}")
    bits = _checked_depth(frame, syntax, layout)
    frame = whole_stream(frame)
    if syntax in _JPEG_2000:
        _require_all_tiles(frame)
    try:
        pixels = _decoded(frame, syntax, layout)
    except _BROKEN_STREAM as error:
        detail = f"the {syntax.name} stream is damaged: {type(error).__name__}"
        raise unreadable(detail) from None
    patterns = _as_patterns(pixels, layout, bits)
    if syntax not in _JPEG:
        patterns = _luma_plane(patterns, layout)
    return patterns, bits


def values_of(patterns: NDArray[np.integer], layout: PixelLayout) -> NDArray[np.int64]:
    """Take the stored bits out of words, extend the sign, drop what else the words hold."""
    bits = layout.bits_stored
    shifted = patterns.astype(np.int64) >> (layout.high_bit + 1 - bits)
    values = shifted & ((1 << bits) - 1)
    if layout.is_signed:
        values[values >= 1 << (bits - 1)] -= 1 << bits
    return values


def agreed(
    patterns: Stored, layout: PixelLayout, bits: int, *, is_from_stream: bool
) -> PixelLayout:
    """Return how to read words that may hold more or fewer bits than Bits Stored (ADR 0015).

    Values may overshoot Bits Stored in a lossy stream, be extended to 16 bits or not, or have bits
    of an overlay above them. If the two ways to read them differ, the smoother picture is right:
    a sign or a carry in the wrong place makes jumps of the whole range. A stream of bytes was made
    from more bits to be shown as it is.

    Args:
        patterns: Grey words of shape (H, W).
        layout: What the header says.
        bits: Depth of the words.
        is_from_stream: Whether the depth is the stream's own; then it wins a tie.
    """
    by_stream = replace(layout, bits_stored=bits, high_bit=bits - 1)
    if layout.high_bit >= layout.bits_stored:
        return layout if layout.high_bit < bits else by_stream
    if bits == _BYTE < layout.bits_stored and not layout.is_signed:
        return by_stream
    num_positive = layout.bits_stored - layout.is_signed
    if bits >= layout.bits_stored and int(patterns.max()) >> num_positive == 0:
        return layout
    words = np.arange(256 if patterns.dtype == np.uint8 else 65536)
    differing = values_of(words, layout) != values_of(words, by_stream)
    lookup = differing.astype(np.uint8)[np.newaxis]
    rows = np.flatnonzero(cv2.LUT(np.ascontiguousarray(patterns), lookup).any(axis=1))
    if not len(rows):
        return layout
    rows = rows[:: len(rows) // _MAX_SAMPLE_ROWS + 1]
    drops_bits = int(patterns.max()) >> min(bits, layout.bits_stored) > 0
    header, stream = (_roughness(patterns, rows, way, drops_bits) for way in (layout, by_stream))
    return layout if header < stream or (header == stream and not is_from_stream) else by_stream


def _roughness(
    patterns: Stored, rows: NDArray[np.intp], layout: PixelLayout, is_scaled: bool
) -> float:
    """Return the mean step between neighbours in and above these rows.

    Args:
        patterns: Grey words.
        rows: Which rows.
        layout: How to read them.
        is_scaled: Whether steps are to be compared with those of a reading that has other bits:
            then they are divided by the middle range. Where the sign alone differs, that range
            would decide, not the jumps.
    """
    values, above = (
        values_of(patterns[place], layout) for place in (rows, np.maximum(rows, 1) - 1)
    )
    steps = np.abs(np.diff(values, axis=1)).mean() + np.abs(values - above).mean()
    if not is_scaled:
        return float(steps)
    # Neither a few specks nor many low bits without their high ones change where the middle lies.
    low, high = np.percentile(values, (25, 75))
    return float(steps / max(high - low, 1.0))


def contradicts_header(frame: bytes, syntax: uid.UID, layout: PixelLayout) -> bool:
    """Tell whether a JPEG stream of colour says of itself that it is of another kind.

    Decoding then believes the stream, whose encoder converted colours or did not and wrote down
    which, over the header, where the value of the original often stays behind.
    """
    if syntax not in _JPEG or layout.samples != 3:
        return False
    return marked_colour(frame) not in (None, _declared_colour(layout))


def _declared_colour(layout: PixelLayout) -> str:
    return "RGB" if layout.photometric == "RGB" else "YCBCR"


def _luma_plane(pixels: Stored, layout: PixelLayout) -> Stored:
    """Return the first plane if it is luma; JPEG 2000 comes out of its decoder as RGB if not."""
    keeps_luma = layout.photometric in ("YBR_FULL", "YBR_FULL_422")
    return pixels[:, :, 0] if pixels.ndim == 3 and keeps_luma else pixels


def _decoded(frame: bytes, syntax: uid.UID, layout: PixelLayout) -> NDArray[np.integer]:
    if syntax in _JPEG_LS:
        return np.asarray(imagecodecs.jpegls_decode(frame))
    if syntax in _JPEG_2000:
        return np.asarray(imagecodecs.jpeg2k_decode(frame, planar=False))
    if layout.samples == 1:
        return np.asarray(imagecodecs.jpeg8_decode(frame))
    if (marked_colour(frame) or _declared_colour(layout)) == "RGB":
        return np.asarray(imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB"))
    grey = imagecodecs.jpeg8_decode(frame, colorspace="YCBCR", outcolorspace="GRAYSCALE")
    return np.asarray(grey)


def _as_patterns(pixels: NDArray[np.integer], layout: PixelLayout, bits: int) -> Stored:
    size = (layout.rows, layout.columns)
    if pixels.shape not in {size, (*size, layout.samples)} or pixels.dtype.itemsize > 2:
        found = f"{pixels.dtype} of shape {pixels.shape}"
        raise implausible(f"the stream decodes to {found}; it must be {size}")
    if pixels.ndim == 3 and layout.samples == 1:
        pixels = pixels[:, :, 0]
    patterns: Stored = pixels.view(np.uint8 if pixels.dtype.itemsize == 1 else np.uint16)
    # Signed JPEG 2000 comes with its sign extended to the whole word.
    if pixels.dtype.kind == "i":
        patterns &= patterns.dtype.type((1 << bits) - 1)
    return patterns


def _checked_depth(frame: bytes, syntax: uid.UID, layout: PixelLayout) -> int:
    """Return the bits of a sample that the stream has, once its size is that of the header."""
    head = jpeg_2000_head(frame) if syntax in _JPEG_2000 else jpeg_head(frame)
    if head is None:
        raise unreadable(f"the {syntax.name} stream has no frame header")
    rows, columns, components, bits = head
    if (rows, columns, components) != (layout.rows, layout.columns, layout.samples):
        raise implausible(
            f"the stream is {rows}x{columns}x{components}, "
            f"the header says {layout.rows}x{layout.columns}x{layout.samples}"
        )
    if bits > 16 or (layout.samples > 1 and bits != 8):
        raise unreadable(f"the stream has samples of {bits} bits")
    return bits


def _run_lengths(frame: bytes, layout: PixelLayout) -> Stored:
    """Decode RLE: one PackBits segment for each byte of each sample, high byte first."""
    size = layout.rows * layout.columns
    segments = _segments(frame, layout.samples * layout.bits_allocated // 8)
    if sum(map(len, segments)) * 64 < size * len(segments):
        size_px = f"{layout.rows}x{layout.columns} px"
        raise implausible(f"{len(frame)} bytes of RLE cannot hold {size_px}")
    planes = [_unpacked(segment, size) for segment in segments]
    if layout.bits_allocated == 16:
        pairs = zip(planes[::2], planes[1::2], strict=True)
        joined: list[Stored] = [high.astype(np.uint16) << np.uint16(8) | low for high, low in pairs]
    else:
        joined = [*planes]
    samples = [plane.reshape(layout.rows, layout.columns) for plane in joined]
    colour: Stored = np.stack(samples, axis=-1)
    return samples[0] if len(samples) == 1 else colour


def _segments(frame: bytes, needed: int) -> list[bytes]:
    head = struct.unpack_from("<16I", frame) if len(frame) >= 64 else (0,)
    offsets = [*head[1 : needed + 1], len(frame)]
    ascending = all(first < second for first, second in pairwise(offsets))
    if head[0] != needed or offsets[0] < 64 or not ascending:
        reason = RejectReason.TRUNCATED if head[0] == needed else RejectReason.IMPLAUSIBLE
        raise RejectedImageError(reason, f"the RLE header does not describe {needed} segments")
    return [frame[start:end] for start, end in pairwise(offsets)]


def _unpacked(segment: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a segment; what it holds beyond the image is left out, as DCMTK and GDCM do."""
    plane = np.empty(size + _LONGEST_RUN, dtype=np.uint8)
    try:
        try:
            filled = len(imagecodecs.packbits_decode(segment, out=plane.data))
        except imagecodecs.PackbitsError:
            needed = segment[: _num_bytes_needed(segment, size)]
            filled = len(imagecodecs.packbits_decode(needed, out=plane.data))
    except imagecodecs.PackbitsError as error:
        detail = f"an RLE segment is damaged: {type(error).__name__}"
        raise unreadable(detail) from None
    if filled < size:
        raise truncated(f"an RLE segment holds {filled} of {size} bytes")
    return plane[:size]


def _num_bytes_needed(segment: bytes, size: int) -> int:
    """Walk the runs of a segment until they fill the image."""
    place = filled = 0
    while filled < size and place < len(segment):
        head = segment[place]
        if head < _NO_RUN:
            place, filled = place + head + 2, filled + head + 1
        elif head == _NO_RUN:
            place += 1
        else:
            place, filled = place + 2, filled + 257 - head
    return place


def codestream(frame: bytes) -> bytes:
    """Return the bare JPEG 2000 codestream; some writers keep the boxes of a JP2 file around it.

    Raises:
        RejectedImageError: `unreadable`: there is none.
    """
    start = frame.find(_CODESTREAM)
    if start < 0:
        raise unreadable("no JPEG 2000 codestream")
    return frame[start:]


def whole_stream(frame: bytes) -> bytes:
    """Return a JPEG, JPEG-LS or JPEG 2000 stream up to its end marker.

    Writers fill a fragment up with zeros, with `FF` or with a few bytes of what lay in their
    buffer. None of the three codes lets the marker's two bytes occur inside image data.

    Raises:
        RejectedImageError: `truncated`: the marker is not there. Without it, CharLS searches for
            seconds, and libjpeg and OpenJPEG fill in what is missing without a word.
    """
    end = len(frame.rstrip(b"\0"))
    place = frame.rfind(_END, max(0, end - _PADDING_BYTES), end)
    if place < 0:
        raise truncated("the stream has no end marker: it was cut, or its writer left it out")
    return frame[: place + len(_END)]


def jpeg_head(frame: bytes) -> Head | None:
    """Return what the first frame header of a JPEG or JPEG-LS stream says."""
    for marker, start, end in _marker_segments(frame):
        if marker in _FRAMES and start + 6 <= min(end, len(frame)):
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, start)
            return rows, columns, components, bits
    return None


def jpeg_2000_head(frame: bytes) -> Head | None:
    """Return what a codestream says of itself if its components are alike and not subsampled."""
    if len(frame) < 43:
        return None
    width, height, left, top = struct.unpack_from(">4I", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    sampling = {frame[42 + 3 * index : 45 + 3 * index] for index in range(min(components, 4))}
    if sampling != {bytes([frame[42], 1, 1])}:
        return None
    return height - top, width - left, components, (frame[42] & 0x7F) + 1


def _require_all_tiles(stream: bytes) -> None:
    """Refuse a codestream without all its tiles and tile-parts: OpenJPEG leaves them black.

    Source: ISO/IEC 15444-1, A.4.2 and A.5.1.
    """
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", stream, 8)
    expected = -(-(right - left) // max(width, 1)) * -(-(bottom - top) // max(height, 1))
    parts = list(_tile_parts(stream))
    found = Counter(tile for tile, _ in parts)
    if len(found) < expected or any(found[tile] < promised for tile, promised in parts):
        raise truncated(f"the codestream holds {len(found)} of {expected} tiles, or parts of them")


def _tile_parts(stream: bytes) -> Iterator[tuple[int, int]]:
    """Yield the tile of each tile-part, and how many parts it has; 0 if the stream does not say."""
    position = len(_CODESTREAM) // 2
    while (marker := stream[position : position + 2]) not in (_TILE_PART, _END, b""):
        position += 2 + int.from_bytes(stream[position + 2 : position + 4])
    while marker == _TILE_PART and position + 12 <= len(stream):
        tile, length, _, promised = struct.unpack_from(">HIBB", stream, position + 4)
        yield tile, promised
        position += length or len(stream)
        marker = stream[position : position + 2]


def marked_colour(frame: bytes) -> str | None:
    """Return `RGB` or `YCBCR` if a lossy JPEG stream of three components says which it is.

    Component names R, G and B say so, a JFIF header (always YCbCr) and an Adobe marker, in this
    order. A lossless stream holds the samples as they were given, whatever its markers say.
    """
    found: dict[int, str] = {}
    for marker, start, end in _marker_segments(frame):
        segment = frame[start:end]
        if marker == _JFIF[0] and segment.startswith(_JFIF[1]):
            found[0] = "YCBCR"
        elif marker == _ADOBE[0] and segment.startswith(_ADOBE[1]) and end - start >= 12:
            found[1] = "YCBCR" if segment[_ADOBE_TRANSFORM] else "RGB"
        elif marker in _FRAMES:
            if marker not in _LOSSY_FRAMES:
                return None
            if segment[6:15:3].upper() == b"RGB":
                return "RGB"
            break
    return found[min(found)] if found else None


def _marker_segments(frame: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment's content, up to the first frame header."""
    position = 0
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _STANDALONE:
            position += 2
        else:
            (length,) = struct.unpack_from(">H", frame, position + 2)
            yield marker, position + 4, position + 2 + length
            if marker in _FRAMES:
                return
            position += 2 + length
