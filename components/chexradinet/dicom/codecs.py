"""One compressed frame to the integers it stores.

Every codec is imagecodecs', whose libraries (libjpeg-turbo, CharLS, OpenJPEG) carry
permissive licences and survive mutated streams once two things hold, which are checked first:
the size in the stream is the size in the header, so nothing larger is allocated, and the end marker
is there (`dicom_streams`). RLE is taken apart here, because imagecodecs'
own reader of DICOM RLE trusts the segment offsets and crashes on wrong ones. OpenJPEG reads HTJ2K,
because imagecodecs drops the errors of its faster OpenJPH and returns what it has (ADR 0005).

Source: DICOM PS3.5 annexes A.4 and G.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from chexradinet.dicom.streams import (
    codestream,
    jpeg_2000_size,
    jpeg_size,
    marked_colour,
    whole_stream,
)
from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

Stored = NDArray[np.unsignedinteger]
"""Stored pixels as bit patterns, uint8 or uint16: signed values are in two's complement."""

_JPEG = {
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
}
_JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_JPEG_2000 = {
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
}

_BROKEN_STREAM = (
    imagecodecs.Jpeg8Error,
    imagecodecs.JpeglsError,
    imagecodecs.Jpeg2kError,
    imagecodecs.PackbitsError,
    MemoryError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameShape:
    """What the header says a frame decodes to."""

    rows: int
    columns: int
    samples: int
    """1 for grey or palette, 3 for colour."""
    bytes_per_sample: int
    """1 or 2."""
    photometric: str
    """Photometric Interpretation, upper case."""


def decode_frame(frame: bytes, syntax: uid.UID, shape: FrameShape) -> Stored:
    """Decode one compressed frame.

    Args:
        frame: The frame's fragments, joined.
        syntax: Its transfer syntax.
        shape: Size that the header announces.

    Returns:
        Grey frames as (H, W); colour as (H, W, 3), or as luma (H, W) where the stream holds it.

    Raises:
        RejectedImageError: `unreadable`, `truncated` or `implausible`.
    """
    if syntax == uid.RLELossless:
        return _luma_plane(_run_lengths(frame, shape), shape)
    if syntax in _JPEG_2000:
        frame = codestream(frame)
    elif syntax not in _JPEG | _JPEG_LS:
        raise RejectedImageError(RejectReason.UNREADABLE, f"no decoder for {syntax.name}")
    _check_size(frame, syntax, shape)
    frame = whole_stream(frame)
    try:
        pixels = _decoded(frame, syntax, shape)
    except _BROKEN_STREAM as error:
        detail = f"the {syntax.name} stream is damaged: {type(error).__name__}"
        raise RejectedImageError(RejectReason.UNREADABLE, detail) from None
    patterns = _as_patterns(pixels, shape)
    return patterns if syntax in _JPEG else _luma_plane(patterns, shape)


def contradicts_header(frame: bytes, syntax: uid.UID, shape: FrameShape) -> bool:
    """Tell whether a JPEG stream of colour says of itself that it is of another kind.

    Decoding then believes the stream, whose encoder converted colours or did not and wrote down
    which, over the header, where the value of the original often stays behind.
    """
    if syntax not in _JPEG or shape.samples != 3:
        return False
    return marked_colour(frame) not in (None, _declared_colour(shape))


def _declared_colour(shape: FrameShape) -> str:
    return "RGB" if shape.photometric == "RGB" else "YCBCR"


def _luma_plane(pixels: Stored, shape: FrameShape) -> Stored:
    """Return the first plane where it is luma; JPEG 2000 comes out of its decoder as RGB if not."""
    keeps_luma = shape.photometric in ("YBR_FULL", "YBR_FULL_422")
    return pixels[:, :, 0] if pixels.ndim == 3 and keeps_luma else pixels


def _decoded(frame: bytes, syntax: uid.UID, shape: FrameShape) -> NDArray[np.integer]:
    if syntax in _JPEG_LS:
        return np.asarray(imagecodecs.jpegls_decode(frame))
    if syntax in _JPEG_2000:
        return np.asarray(imagecodecs.jpeg2k_decode(frame, planar=False))
    if shape.samples == 1:
        return np.asarray(imagecodecs.jpeg8_decode(frame))
    if (marked_colour(frame) or _declared_colour(shape)) == "RGB":
        return np.asarray(imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB"))
    grey = imagecodecs.jpeg8_decode(frame, colorspace="YCBCR", outcolorspace="GRAYSCALE")
    return np.asarray(grey)


def _as_patterns(pixels: NDArray[np.integer], shape: FrameShape) -> Stored:
    size = (shape.rows, shape.columns)
    if pixels.shape not in {size, (*size, shape.samples)} or pixels.dtype.itemsize > 2:
        detail = f"the stream decodes to {pixels.dtype} of shape {pixels.shape}; needed is {size}"
        raise RejectedImageError(RejectReason.IMPLAUSIBLE, detail)
    if pixels.ndim == 3 and shape.samples == 1:
        pixels = pixels[:, :, 0]
    patterns: Stored = pixels.view(np.uint8 if pixels.dtype.itemsize == 1 else np.uint16)
    return patterns


def _check_size(frame: bytes, syntax: uid.UID, shape: FrameShape) -> None:
    size = jpeg_2000_size(frame) if syntax in _JPEG_2000 else jpeg_size(frame)
    if size is None:
        detail = f"the {syntax.name} stream has no frame header"
        raise RejectedImageError(RejectReason.UNREADABLE, detail)
    if size != (shape.rows, shape.columns, shape.samples):
        detail = f"the stream is {size[0]}x{size[1]}x{size[2]}, the header says "
        detail += f"{shape.rows}x{shape.columns}x{shape.samples}"
        raise RejectedImageError(RejectReason.IMPLAUSIBLE, detail)


def _run_lengths(frame: bytes, shape: FrameShape) -> Stored:
    """Decode RLE: one PackBits segment for each byte of each sample, high byte first."""
    size = shape.rows * shape.columns
    segments = _segments(frame, shape.samples * shape.bytes_per_sample)
    if sum(map(len, segments)) * 64 < size * len(segments):
        detail = f"{len(frame)} bytes of RLE cannot hold {shape.rows}x{shape.columns} px"
        raise RejectedImageError(RejectReason.IMPLAUSIBLE, detail)
    planes = [_unpacked(segment, size) for segment in segments]
    if shape.bytes_per_sample == 2:
        pairs = zip(planes[::2], planes[1::2], strict=True)
        joined = [_joined(high, low) for high, low in pairs]
        samples: list[Stored] = [plane.reshape(shape.rows, shape.columns) for plane in joined]
    else:
        samples = [plane.reshape(shape.rows, shape.columns) for plane in planes]
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
    plane = np.empty(size, dtype=np.uint8)
    try:
        filled = len(imagecodecs.packbits_decode(segment, out=plane.data))
    except imagecodecs.PackbitsError as error:
        detail = f"an RLE segment is damaged: {type(error).__name__}"
        raise RejectedImageError(RejectReason.UNREADABLE, detail) from None
    if filled < size:
        detail = f"an RLE segment holds {filled} of {size} bytes"
        raise RejectedImageError(RejectReason.TRUNCATED, detail)
    return plane


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    words = np.empty((high.size, 2), dtype=np.uint8)
    words[:, 0], words[:, 1] = low, high
    return words.view("<u2").reshape(-1)
