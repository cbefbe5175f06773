"""From stored values to display grey levels: one table lookup for the whole chain.

Modality LUT or rescale, then VOI LUT or window, then the inversion of MONOCHROME1: each is applied
to every value that a pixel could have, never to the pixels, in double precision and rounded once.
The pixels are then looked up, which is exact for any chain and takes two milliseconds for four
million (ADR 0005). Dense is bright.

Source: DICOM PS3.3 sections C.11.1 (Modality LUT), C.11.2 (VOI LUT) and C.7.5.1.1.2 (padding).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig
from chexradinet.dicom.codecs import PixelLayout, Stored
from chexradinet.dicom.file import (
    implausible,
    integer,
    is_given,
    item_of,
    little_endian,
    numbers,
    text,
    value_of,
)

Values = NDArray[np.float64]
Limits = tuple[float, float]

_SIGN_BIT = 0x8000
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def display_pixels(
    stored: Stored, layout: PixelLayout, dataset: Dataset, config: DicomConfig
) -> tuple[NDArray[np.uint8], str]:
    """Map stored values of shape (H, W) to grey levels, and tell which map it was.

    Args:
        stored: Bit patterns as `stored_pixels` returns them.
        layout: How to read the patterns.
        dataset: Header with the tables and windows.
        config: Which of several to take.

    Returns:
        Grey levels of shape (H, W), bright where dense, padding 0; and a sentence for the record,
        such as `window 1 of 2: LINEAR, centre 550, width 1024`.
    """
    patterns = np.arange(256 if stored.dtype == np.uint8 else 65536)
    values = _values_of(patterns, layout)
    padding = _padding(values, layout, dataset)
    scaled, limits, lacking = _modality(values, dataset)
    levels, description = _voi(scaled, dataset, config)
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
    return _looked_up(stored, table), description + lacking


def _looked_up(stored: Stored, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.LUT(np.ascontiguousarray(stored), table[np.newaxis]), dtype=np.uint8)


def palette_luma(stored: Stored, layout: PixelLayout, dataset: Dataset) -> NDArray[np.uint8] | None:
    """Return the luma of a PALETTE COLOR image, or None where a table is missing or damaged."""
    patterns = np.arange(256 if stored.dtype == np.uint8 else 65536)
    values = _values_of(patterns, layout)
    weights = {"Red": 0.299, "Green": 0.587, "Blue": 0.114}  # ITU-R BT.601
    total = np.zeros(len(patterns))
    for colour, weight in weights.items():
        found = _lookup_table(dataset, f"{colour}PaletteColorLookupTable", values)
        if found is None:
            return None
        total += weight * found[0] / found[1]
    return _looked_up(stored, np.rint(np.clip(total, 0.0, 1.0) * 255.0).astype(np.uint8))


def _values_of(patterns: NDArray[np.int64], layout: PixelLayout) -> Values:
    """Take the stored bits out of a word, extend the sign, drop what else the word holds."""
    bits = layout.bits_stored
    values = (patterns >> (layout.high_bit + 1 - bits)) & ((1 << bits) - 1)
    if layout.is_signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return values.astype(np.float64)


def _padding(values: Values, layout: PixelLayout, dataset: Dataset) -> NDArray[np.bool_]:
    first = integer(dataset, "PixelPaddingValue")
    if first is None:
        return np.zeros(len(values), dtype=np.bool_)
    last = integer(dataset, "PixelPaddingRangeLimit")
    limits = [first, first if last is None else last]
    if layout.is_signed:
        limits = [limit - 2 * _SIGN_BIT if limit >= _SIGN_BIT else limit for limit in limits]
    return np.asarray((values >= min(limits)) & (values <= max(limits)))


def _modality(values: Values, dataset: Dataset) -> tuple[Values, Limits, str]:
    """Return values after the table or the rescale, the least and greatest, and what it lacks."""
    item = item_of(dataset, "ModalityLUTSequence")
    found = None if item is None else _lookup_table(item, "LUT", values)
    if found is not None:
        return found[0], (0.0, found[1]), ""
    lacking = "" if item is None else "; without the Modality LUT, which is damaged"
    slope = numbers(dataset, "RescaleSlope") or [1.0]
    intercept = numbers(dataset, "RescaleIntercept") or [0.0]
    scaled = values * (slope[0] or 1.0) + intercept[0]
    limits = float(scaled.min()), float(scaled.max())
    if not all(map(math.isfinite, limits)):
        raise implausible("Rescale Slope and Intercept lead beyond what a number can hold")
    return scaled, limits, lacking


def _voi(values: Values, dataset: Dataset, config: DicomConfig) -> tuple[Values | None, str]:
    """Return levels in [0, 1] by the chosen table or window, or None and why there are none."""
    steps = [_voi_table, _voi_window] if config.prefer_voi_lut else [_voi_window, _voi_table]
    unusable = []
    for step in steps:
        levels, description = step(values, dataset, config.voi_index)
        if levels is not None:
            return levels, description
        if description:
            unusable.append(description)
    return None, " and ".join(unusable) or "the header has no window"


def _voi_table(values: Values, dataset: Dataset, index: int) -> tuple[Values | None, str]:
    item = item_of(dataset, "VOILUTSequence", index)
    if item is None:
        return None, ""
    found = _lookup_table(item, "LUT", values)
    if found is None:
        return None, "the VOI LUT is damaged"
    return found[0] / found[1], f"VOI LUT {index + 1}"


def _voi_window(values: Values, dataset: Dataset, index: int) -> tuple[Values | None, str]:
    pairs = list(
        zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    )
    if not pairs:
        given = is_given(dataset, "WindowCenter") or is_given(dataset, "WindowWidth")
        return None, "the window is incomplete or damaged" if given else ""
    index = min(index, len(pairs) - 1)
    centre, width = pairs[index]
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if function not in _FUNCTIONS:  # not quoted: it may hold anything
        return None, "the window has an unknown VOI LUT Function"
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None, f"the window has a width of {width:g}"
    levels = _windowed(values, centre, width, function)
    name = f"window {index + 1} of {len(pairs)}: {function}, centre {centre:g}, width {width:g}"
    return levels, name


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
    present = np.bincount(stored.ravel(), minlength=len(values)) > 0
    used = values[present & ~padding]
    return (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)


def _lookup_table(dataset: Dataset, prefix: str, values: Values) -> tuple[Values, float] | None:
    """Look values up in an explicit table; return what it gives and its largest possible entry."""
    descriptor = numbers(dataset, f"{prefix}Descriptor")
    data = value_of(dataset, f"{prefix}Data")
    if len(descriptor) != 3 or data is None:
        return None
    length, first, bits = (int(number) for number in descriptor)
    length = length & 0xFFFF or 65536
    if isinstance(data, bytes):
        data = little_endian(dataset, data)
    entries = _table_entries(data, length, numbers(dataset, f"{prefix}Data"))
    if entries is None or not 1 <= bits <= 16:
        return None
    if first >= _SIGN_BIT and values.min() < 0:
        first -= 2 * _SIGN_BIT
    index = np.clip(np.rint(values) - first, 0, length - 1).astype(np.int64)
    return entries[index], float((1 << bits) - 1)


def _table_entries(data: object, length: int, unpacked: list[float]) -> Values | None:
    """Return the entries of a table stored as words, or as bytes where there are that many."""
    if isinstance(data, bytes) and len(data) in (length, length + 1):
        return np.frombuffer(data[:length], dtype=np.uint8).astype(np.float64)
    if len(unpacked) < length:
        return None
    return np.asarray(unpacked[:length], dtype=np.float64) % 65536
