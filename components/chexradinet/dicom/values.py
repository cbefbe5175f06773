"""Header values that are what they should be, or absent: damaged ones never raise.

Called inside `quiet()`, because pydicom converts on access and quotes what it does not like.
"""

import math
import struct
import warnings
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from chexradinet.dicom.file import BROKEN_HEADER

_MAX_TEXT = 256


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
