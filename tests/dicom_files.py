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


def with_items(content: bytes, *items: bytes) -> bytes:
    """Return a file of a compressed transfer syntax with these items as its Pixel Data."""
    place = content.rindex(_PIXEL_DATA[True])
    head = content[:place] + _PIXEL_DATA[True] + b"OB\0\0" + b"\xff" * 4
    written = (b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items)
    return head + b"".join(written) + b"\xfe\xff\xdd\xe0" + bytes(4)


def patched(content: bytes, group: int, element: int, vr: bytes, value: int) -> bytes:
    """Overwrite the value of a two-byte element of an explicit VR file."""
    head = struct.pack("<HH", group, element) + vr + b"\x02\x00"
    assert content.count(head) == 1
    place = content.index(head) + len(head)
    return content[:place] + struct.pack("<H", value) + content[place + 2 :]
