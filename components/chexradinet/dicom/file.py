"""From the bytes of a DICOM file to its data set and the place of its pixels.

pydicom reads the data set; finding where it starts, inflating it and locating Pixel Data is done
here, so that no length in a hostile header is believed before it is checked against the bytes at
hand. Pixels are not copied: `DicomFile.pixel_data` is a view of the file's bytes.

File Meta Information is read as it is found, not as its group length says: explicit or implicit VR,
and a second one after it is passed over. In the data set, an element whose VR is unknown, or whose
length has the wrong size, is read in the one form after which another element begins.

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
from typing import Any, Literal

from pydicom.datadict import dictionary_has_tag, dictionary_VR
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
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

MAX_FILE_BYTES = 128 * 1024 * 1024
"""Largest file, and largest inflated data set; the largest detectors give 36 MB."""
MAX_ELEMENTS = 50_000
"""Most elements before the pixels, items of sequences included; a radiograph has a few hundred."""
MAX_SEQUENCE_BYTES = 4 * 1024 * 1024
"""Most bytes in all sequences that are parsed on access; ten lookup tables take 1.3 MB."""
MAX_VALUE_BYTES = 256 * 1024
"""Longest value that is converted; the largest lookup table takes half of it."""

BROKEN_HEADER = (
    *(ArithmeticError, AssertionError, AttributeError, BytesLengthException, EOFError, LookupError),
    *(InvalidDicomError, MemoryError, NotImplementedError, OSError, RecursionError, TypeError),
    *(ValueError, struct.error),
)
"""What pydicom raises on headers that are damaged or made up; found by mutating real files."""

unreadable = partial(RejectedImageError, RejectReason.UNREADABLE)
truncated = partial(RejectedImageError, RejectReason.TRUNCATED)
implausible = partial(RejectedImageError, RejectReason.IMPLAUSIBLE)
too_large = partial(RejectedImageError, RejectReason.TOO_LARGE)

_PIXEL_TAGS = {0x7FE00008: "Float", 0x7FE00009: "Double Float", 0x7FE00010: ""}
_UNDEFINED_LENGTH = 0xFFFFFFFF
_MAX_TEXT = 256
_LONG_VRS = {str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32}
_KNOWN_VRS = {str(vr).encode() for vr in EXPLICIT_VR_LENGTH_16} | _LONG_VRS
_DELIMITER_GROUP = 0xFFFE
_CHECKED_BYTES = 8
_IMPLICIT_BIG_ENDIAN = "1.2.840.113619.5.2"

# pydicom quotes header values in its warnings, and those may name the patient.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DicomFile:
    """A parsed header and the bytes of its pixels, none of them decoded yet."""

    dataset: Dataset
    """Every element before the pixels."""
    transfer_syntax: UID
    """As File Meta Information says, or as the bytes suggest if it is absent."""
    pixel_data: memoryview
    """Value of Pixel Data, cut where the file ends."""
    pixel_vr: str
    """`OB` or `OW`; empty under implicit VR."""
    missing_bytes: int
    """How many bytes of Pixel Data the file lacks."""


def open_dicom(content: bytes) -> DicomFile:
    """Parse a DICOM file up to its pixels.

    Raises:
        RejectedImageError: `unreadable`, `truncated`, `not_an_image` or `too_large`.
    """
    if len(content) > MAX_FILE_BYTES:
        raise too_large(f"{len(content)} bytes; at most {MAX_FILE_BYTES} are read")
    start, syntax = _start_and_syntax(content)
    if syntax == DeflatedExplicitVRLittleEndian:
        content, start = _inflated(memoryview(content)[start:]), 0
    return _parsed(content, start, syntax)


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
    """Walk group 0002; return its end and the first transfer syntax in it."""
    syntax = ""
    while position + 8 <= len(content) and content[position : position + 2] == b"\x02\x00":
        element, vr, short = struct.unpack_from("<H2sH", content, position + 2)
        value_start, length = position + 8, short
        if vr not in _KNOWN_VRS:
            (implicit,) = struct.unpack_from("<I", content, position + 4)
            length = implicit if value_start + implicit <= len(content) else short
        elif vr in _LONG_VRS:
            if position + 12 > len(content):
                break
            (length,) = struct.unpack_from("<I", content, position + 8)
            value_start = position + 12
        position = value_start + length
        if element == 0x0010 and not syntax:
            raw = content[value_start:position]
            syntax = raw.decode("ascii", errors="replace").strip(" \0")
    return position, syntax


def _known(syntax: UID) -> UID:
    if not syntax.is_transfer_syntax or syntax.is_private or syntax == _IMPLICIT_BIG_ENDIAN:
        raise unreadable("the transfer syntax is unknown")
    return syntax


def _guessed_syntax(content: bytes, start: int) -> UID:
    """Accept a bare data set only if its first element is what such a data set begins with."""
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


def _inflated(deflated: memoryview) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(deflated, MAX_FILE_BYTES)
    except zlib.error as error:
        raise unreadable("deflated data are damaged") from error
    if inflater.unconsumed_tail:
        raise too_large(f"deflated data grow beyond {MAX_FILE_BYTES} bytes")
    return content


class _Elements(io.BytesIO):
    """A data set as pydicom is to see it: limits kept, unknown VRs replaced by ones it can pass.

    pydicom asks for the 8 bytes that an element begins with, then for its value.
    """

    def __init__(self, content: bytes, start: int, syntax: UID) -> None:
        super().__init__(content)
        self.seek(start)
        self.refusal: RejectedImageError | None = None
        """Why reading was ended; pydicom may turn what is raised here into another error."""
        self._content = content
        self._order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
        self._sign = "<" if syntax.is_little_endian else ">"
        self._start = start
        self._is_explicit = _is_value_representation(content[start + 4 : start + 6]) or (
            not syntax.is_implicit_VR and bool(self._form(start, b"", self._short(start + 6), 0)[0])
        )
        self._next = start
        self._num_elements = self._sequence_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return bytes; those of an element's head as they should be."""
        place = self.tell()
        head = super().read(size)
        if self._is_explicit and (place, size) == (self._start + 4, 2):
            return b"UN"  # pydicom looks here for whether the data set is explicit
        if size != _CHECKED_BYTES or place < self._next or len(head) < _CHECKED_BYTES:
            return head
        group, element, vr, length = struct.unpack(f"{self._sign}HH2sH", head)
        if self._is_explicit and group != _DELIMITER_GROUP:
            vr, start, length = self._form(place, vr, length, group << 16 | element)
            if vr != head[4:6]:
                head = struct.pack(f"{self._sign}HH2sH", group, element, vr, length * (start == 8))
        else:
            vr, start = b"", 8
            (length,) = struct.unpack_from(f"{self._sign}I", head, 4)
        if group == _DELIMITER_GROUP or length == _UNDEFINED_LENGTH:
            length = 0
        self._next = place + start + length
        self._check(group << 16 | element, vr, length)
        return head

    def _form(self, place: int, vr: bytes, length: int, tag: int) -> tuple[bytes, int, int]:
        """Return VR, size of the head and length of an element of an explicit data set."""
        long_length = self._long(place + 8)
        if vr in _KNOWN_VRS - _LONG_VRS:
            return vr, 8, length
        if vr in _LONG_VRS and (length == 0 or long_length == _UNDEFINED_LENGTH):
            return vr, 12, long_length
        if self._is_followed(place + 8 + length):
            named = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
            short = named[:2] if named[:2] in EXPLICIT_VR_LENGTH_16 else "LO"  # also `US or SS`
            return short.encode(), 8, length
        if self._is_followed(place + 12 + long_length):
            return vr if vr in _LONG_VRS else b"UN", 12, long_length
        # pydicom takes what is left for implicit VR, which some writers change to in between.
        return vr, 8, self._long(place + 4)

    def _short(self, place: int) -> int:
        return int.from_bytes(self._content[place : place + 2], self._order)

    def _long(self, place: int) -> int:
        return int.from_bytes(self._content[place : place + 4], self._order)

    def _is_followed(self, place: int) -> bool:
        """Tell whether an element of a known VR, or nothing more, stands at a place."""
        known = self._content[place + 4 : place + 6] in _KNOWN_VRS
        return place == len(self._content) or known or self._short(place) == _DELIMITER_GROUP

    def _check(self, tag: int, vr: bytes, length: int) -> None:
        self._num_elements += 1
        named = dictionary_VR(tag) if length > 0xFFFE and dictionary_has_tag(tag) else ""
        if b"SQ" in (vr, named.encode()):
            self._sequence_bytes += length
        if self._num_elements > MAX_ELEMENTS:
            self.refusal = too_large(f"more than {MAX_ELEMENTS} elements before the pixels")
        elif self._sequence_bytes > MAX_SEQUENCE_BYTES:
            self.refusal = too_large(f"over {MAX_SEQUENCE_BYTES} bytes of sequences")
        elif named in EXPLICIT_VR_LENGTH_16:
            self.refusal = too_large(f"{length} bytes in an element that holds at most 65534")
        if self.refusal is not None:
            raise self.refusal


def _parsed(content: bytes, start: int, syntax: UID) -> DicomFile:
    stream = _Elements(content, start, syntax)
    found: list[tuple[int, str, int, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if int(tag) in _PIXEL_TAGS:
            found.append((int(tag), vr or "", length, stream.tell()))
        return bool(found)

    with quiet():
        try:
            dataset = read_dataset(
                stream, syntax.is_implicit_VR, syntax.is_little_endian, stop_when=at_pixels
            )
        except BROKEN_HEADER as error:
            detail = f"the header is damaged: {type(error).__name__}"
            raise stream.refusal or unreadable(detail) from None
    if not found:
        raise _without_pixels(dataset, len(content))
    tag, vr, length, offset = found[0]
    if _PIXEL_TAGS[tag]:
        raise unreadable(f"{_PIXEL_TAGS[tag]} Pixel Data; it must hold integers")
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
    """Silence pydicom's warnings in a block or function: they may quote the patient's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def value_of(dataset: Dataset, keyword: str) -> Any:  # noqa: ANN401 - what DICOM holds
    """Return an element's value, or None if it is absent, empty or damaged."""
    try:
        length = getattr(dataset.get_item(keyword), "length", 0) if keyword in dataset else 0
        if length > MAX_VALUE_BYTES and not keyword.endswith("Sequence"):
            return None
        value = dataset.get(keyword)
    except BROKEN_HEADER:
        return None
    return None if value is None or value == "" else value


def is_given(dataset: Dataset, keyword: str) -> bool:
    """Tell whether an element is there with a value, be it a damaged one."""
    return keyword in dataset and dataset.get_item(keyword).value not in (None, b"", "")


def text(dataset: Dataset, keyword: str) -> str:
    r"""Return a value as text without padding, several joined by `\`; empty if absent."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, bytes | Sequence):
        return ""
    parts = value if isinstance(value, MultiValue | list) else [value]
    return "\\".join(str(part) for part in parts).strip(" \0")[:_MAX_TEXT]


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the finite numbers of an element, none if it is absent or any is not finite."""
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
    """Return the first value if it is a whole number, else None."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found and found[0] == int(found[0]) else None


def item_of(dataset: Dataset, keyword: str, index: int = 0) -> Dataset | None:
    """Return an item of a sequence, the last if there are fewer, or None if there is none."""
    sequence = value_of(dataset, keyword)
    try:
        items = [item for item in sequence or () if isinstance(item, Dataset)]
    except BROKEN_HEADER:
        return None
    return items[min(index, len(items) - 1)] if items else None
