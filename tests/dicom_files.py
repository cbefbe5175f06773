"""DICOM files whose Pixel Data are not what the rest of the header was written for."""

import struct

from pydicom.encaps import encapsulate

_PIXEL_DATA = {True: b"\xe0\x7f\x10\x00", False: b"\x7f\xe0\x00\x10"}


def with_pixel_bytes(content: bytes, value: bytes, vr: str = "OB", *, little: bool = True) -> bytes:
    """Return an explicit VR file with other bytes as its native Pixel Data, of any length."""
    place = content.rindex(_PIXEL_DATA[little])
    length = struct.pack("<I" if little else ">I", len(value))
    return content[: place + 4] + vr.encode() + b"\0\0" + length + value


def with_stream(content: bytes, stream: bytes) -> bytes:
    """Return a file of a compressed transfer syntax with another stream as its only frame."""
    place = content.rindex(_PIXEL_DATA[True])
    head = content[:place] + _PIXEL_DATA[True] + b"OB\0\0" + b"\xff" * 4
    end = b"\xfe\xff\xdd\xe0" + bytes(4)
    return head + bytes(encapsulate([stream])) + end
