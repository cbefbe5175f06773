"""What a compressed stream says of itself, read before any decoder sees it: size, end, colour.

Source: ITU-T T.81, T.87 and T.800 for the markers; T.871 for JFIF; Adobe Technical Note 5116 for
the Adobe marker.
"""

import struct
from collections.abc import Iterator

from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

Size = tuple[int, int, int]
"""Rows, columns and components."""

_LOSSY_FRAMES = {0xC0, 0xC1, 0xC2}
_FRAMES = _LOSSY_FRAMES | {0xC3, 0xF7}
_STANDALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}
_JFIF, _ADOBE = (0xE0, b"JFIF\0"), (0xEE, b"Adobe")
_ADOBE_TRANSFORM = 11
_END = b"\xff\xd9"
_PADDING_BYTES = 64
_CODESTREAM = b"\xff\x4f\xff\x51"


def codestream(frame: bytes) -> bytes:
    """Return the bare JPEG 2000 codestream; some writers keep the boxes of a JP2 file around it.

    Raises:
        RejectedImageError: `unreadable`: there is none.
    """
    start = frame.find(_CODESTREAM)
    if start < 0:
        raise RejectedImageError(RejectReason.UNREADABLE, "no JPEG 2000 codestream")
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
        detail = "the stream has no end marker: it was cut, or its writer left the marker out"
        raise RejectedImageError(RejectReason.TRUNCATED, detail)
    return frame[: place + len(_END)]


def jpeg_size(frame: bytes) -> Size | None:
    """Return the size in the first frame header of a JPEG or JPEG-LS stream."""
    for marker, start, end in _segments(frame):
        if marker in _FRAMES and start + 6 <= min(end, len(frame)):
            rows, columns, components = struct.unpack_from(">HHB", frame, start + 1)
            return rows, columns, components
    return None


def jpeg_2000_size(frame: bytes) -> Size | None:
    """Return the size of a codestream whose components are not subsampled."""
    if len(frame) < 42:
        return None
    width, height, left, top = struct.unpack_from(">4I", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    sampling = [frame[43 + 3 * index : 45 + 3 * index] for index in range(min(components, 4))]
    if any(step != b"\x01\x01" for step in sampling):
        return None
    return height - top, width - left, components


def marked_colour(frame: bytes) -> str | None:
    """Return `RGB` or `YCBCR` where a lossy JPEG stream of three components says which it is.

    Component names R, G and B say so, a JFIF header (always YCbCr) and an Adobe marker, in this
    order. A lossless stream holds the samples as they were given, whatever its markers say.
    """
    found: dict[int, str] = {}
    for marker, start, end in _segments(frame):
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


def _segments(frame: bytes) -> Iterator[tuple[int, int, int]]:
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
