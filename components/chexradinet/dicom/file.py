"""From the bytes of a DICOM file to its data set and the place of its pixels.

pydicom reads the data set; finding where it starts, inflating it and locating Pixel Data is done
here, so that no length in a hostile header is believed before it is checked against the bytes at
hand. Nothing is copied: `DicomFile.pixel_data` is a view of the file's bytes.

Source: DICOM PS3.10 section 7 (file format) and PS3.5 section 7 and annex A (transfer syntaxes).
"""

import io
import logging
import math
import struct
import warnings
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Largest file, and largest inflated data set, that is read into memory."""

BROKEN_HEADER = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What pydicom raises on headers that are damaged or made up; found by mutating real files."""

unreadable = partial(RejectedImageError, RejectReason.UNREADABLE)
truncated = partial(RejectedImageError, RejectReason.TRUNCATED)
implausible = partial(RejectedImageError, RejectReason.IMPLAUSIBLE)

_PIXEL_TAGS = {0x7FE00008: "Float", 0x7FE00009: "Double Float", 0x7FE00010: ""}
_UNDEFINED_LENGTH = 0xFFFFFFFF
_MAX_TEXT = 256
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT"}
_LONG_VRS |= {b"UV"}
_IMPLICIT_BIG_ENDIAN = "1.2.840.113619.5.2"

# pydicom quotes header values in its warnings, and those may name the patient.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DicomFile:
    """A parsed header and the bytes of its pixels, none of them decoded yet."""

    dataset: Dataset
    """Every element before the pixels."""
    transfer_syntax: UID
    """As File Meta Information says, or as the bytes suggest where it is absent."""
    pixel_data: memoryview
    """Value of Pixel Data, cut where the file ends."""
    pixel_vr: str
    """`OB` or `OW`; empty under implicit VR."""
    missing_bytes: int
    """How many bytes of Pixel Data the file lacks."""


def open_dicom(source: Path | bytes) -> DicomFile:
    """Parse a DICOM file up to its pixels.

    Args:
        source: Path of a file, or its content.

    Raises:
        RejectedImageError: `missing`, `unreadable`, `truncated`, `not_an_image` or `implausible`.
    """
    content = _content(source)
    start, syntax = _start_and_syntax(content)
    if syntax == DeflatedExplicitVRLittleEndian:
        content, start = _inflated(content[start:]), 0
    return _parsed(content, start, syntax)


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        size = source.stat().st_size
        if size > MAX_FILE_BYTES:
            raise implausible(f"{size} bytes; at most {MAX_FILE_BYTES} are read")
        return source.read_bytes()
    except FileNotFoundError as error:
        raise RejectedImageError(RejectReason.MISSING, "there is no such file") from error
    except OSError as error:
        raise unreadable(error.strerror or type(error).__name__) from error


def _start_and_syntax(content: bytes) -> tuple[int, UID]:
    """Return where the data set starts, and its transfer syntax."""
    if not content:
        raise truncated("the file is empty")
    start = 132 if content[128:132] == b"DICM" else 4 if content[:4] == b"DICM" else 0
    start, found = _file_meta(content, start)
    if found:
        return start, _known(UID(found))
    return start, _guessed_syntax(content, start)


def _file_meta(content: bytes, position: int) -> tuple[int, str]:
    """Walk group 0002, which is always explicit little endian; return its end and the syntax."""
    syntax = ""
    while position + 8 <= len(content) and content[position : position + 2] == b"\x02\x00":
        element, value_representation = struct.unpack_from("<H2s", content, position + 2)
        if value_representation in _LONG_VRS:
            if position + 12 > len(content):
                break
            (length,) = struct.unpack_from("<I", content, position + 8)
            value_start = position + 12
        else:
            (length,) = struct.unpack_from("<H", content, position + 6)
            value_start = position + 8
        position = value_start + length
        if element == 0x0010:
            raw = content[value_start:position]
            syntax = raw.decode("ascii", errors="replace").strip(" \0")
    return position, syntax


def _known(syntax: UID) -> UID:
    if not syntax.is_transfer_syntax or syntax.is_private or syntax == _IMPLICIT_BIG_ENDIAN:
        raise unreadable("the transfer syntax is unknown")
    return syntax


def _guessed_syntax(content: bytes, start: int) -> UID:
    """Accept a bare data set only where its first element is what such a data set begins with."""
    head = content[start : start + 8]
    if len(head) == 8 and head[:2] in (b"\x08\x00", b"\x00\x08"):
        if head[:2] == b"\x08\x00" and _is_value_representation(head[4:6]):
            return ExplicitVRLittleEndian
        if head[:2] == b"\x00\x08" and _is_value_representation(head[4:6]):
            return UID("1.2.840.10008.1.2.2")
        if head[:2] == b"\x08\x00" and struct.unpack("<I", head[4:])[0] < len(content):
            return ImplicitVRLittleEndian
    if start:
        raise truncated("the file ends after its file meta")
    raise RejectedImageError(RejectReason.NOT_AN_IMAGE, "the file is not DICOM")


def _is_value_representation(code: bytes) -> bool:
    return code.isalpha() and code.isupper()


def _inflated(deflated: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(deflated, MAX_FILE_BYTES)
    except zlib.error as error:
        raise unreadable("deflated data are damaged") from error
    if inflater.unconsumed_tail:
        raise implausible(f"deflated data grow beyond {MAX_FILE_BYTES} bytes")
    return content


def _parsed(content: bytes, start: int, syntax: UID) -> DicomFile:
    stream = io.BytesIO(content)
    stream.seek(start)
    found: list[tuple[int, str, int, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if int(tag) in _PIXEL_TAGS:
            found.append((int(tag), vr or "", length, stream.tell()))
        return bool(found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = read_dataset(
                stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=at_pixels
            )
        except BROKEN_HEADER as error:
            raise unreadable(f"the header is damaged: {type(error).__name__}") from None
    if not found:
        raise _without_pixels(dataset, len(content))
    tag, vr, length, offset = found[0]
    if _PIXEL_TAGS[tag]:
        raise unreadable(f"{_PIXEL_TAGS[tag]} Pixel Data; needed are integers")
    available = len(content) - offset
    wanted = available if length == _UNDEFINED_LENGTH else length
    return DicomFile(
        dataset=dataset,
        transfer_syntax=syntax,
        pixel_data=memoryview(content)[offset : offset + wanted],
        pixel_vr=vr,
        missing_bytes=max(wanted - available, 0),
    )


def _without_pixels(dataset: Dataset, num_bytes: int) -> RejectedImageError:
    """Tell an object that has no pixels from a file that ends inside its header."""
    last = max(dataset.keys(), default=None)
    if last is None:
        return unreadable("the header holds no element")
    try:
        element = dataset.get_item(last)
    except BROKEN_HEADER:
        return unreadable("the last element is damaged")
    length = getattr(element, "length", 0)
    end = getattr(element, "value_tell", 0) + length
    if length != _UNDEFINED_LENGTH and end > num_bytes:
        return truncated("the file ends inside its header")
    return RejectedImageError(RejectReason.NOT_AN_IMAGE, "the object has no Pixel Data")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings, which may quote the patient's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def value_of(dataset: Dataset, keyword: str) -> Any:  # noqa: ANN401 - what DICOM holds
    """Return an element's value, or None where it is absent, empty or damaged."""
    try:
        value = dataset.get(keyword)
    except BROKEN_HEADER:
        return None
    return None if value is None or value == "" else value


def is_given(dataset: Dataset, keyword: str) -> bool:
    """Tell whether an element is there with a value, be it a damaged one."""
    return keyword in dataset and dataset.get_item(keyword).value not in (None, b"", "")


def text(dataset: Dataset, keyword: str) -> str:
    r"""Return a value as text without padding, several joined by `\`; empty where absent."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, bytes | Sequence):
        return ""
    parts = value if isinstance(value, MultiValue | list) else [value]
    return "\\".join(str(part) for part in parts).strip(" \0")[:_MAX_TEXT]


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the finite numbers of an element, none where it is absent or any is not finite."""
    value = value_of(dataset, keyword)
    if isinstance(value, bytes):
        octets = little_endian(dataset, value)
        value = list(struct.unpack(f"<{len(octets) // 2}H", octets[: len(octets) // 2 * 2]))
    parts = value if isinstance(value, MultiValue | list) else [value]
    try:
        found = [float(part) for part in parts if part is not None]
    except (TypeError, ValueError, OverflowError):
        return []
    return found if all(math.isfinite(number) for number in found) else []


def little_endian(dataset: Dataset, value: bytes) -> bytes:
    """Return words of 16 bits, which pydicom leaves as bytes, in little endian order.

    Those of a big endian file are swapped; a byte that lacks its second is then left out.
    """
    if dataset.original_encoding[1] is not False:
        return value
    words = array("H", value[: len(value) // 2 * 2])
    words.byteswap()
    return words.tobytes()


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Return the first value where it is a whole number, else None."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found and found[0] == int(found[0]) else None


def item_of(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return an item of a sequence, the last where there are fewer, or None where there is none."""
    sequence = value_of(dataset, keyword)
    try:
        items = [item for item in sequence or () if isinstance(item, Dataset)]
    except BROKEN_HEADER:
        return None
    return items[min(index, len(items) - 1)] if items else None
