"""Lookup tables, windows and padding values that contradict themselves or the pixels."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig
from chexradinet.dicom.reader import Radiograph, read_radiograph
from chexradinet.phantom import encode_radiograph

PLAIN = uid.ExplicitVRLittleEndian
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
FLUOROSCOPY = "1.2.840.10008.5.1.4.1.1.12.2"


def ramp() -> NDArray[np.uint16]:
    return np.linspace(0, 4095, 40 * 32).round().astype(np.uint16).reshape(40, 32)


def table(
    entries: list[int], bits: int, length: int | None = None, first: int = 0
) -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [(length or len(entries)) % 65536, first, bits])
    item.add_new("LUTData", "US", entries)
    return [item]


def read(stored: NDArray[np.integer], **attributes: object) -> Radiograph:
    return read_radiograph(encode_radiograph(stored, PLAIN, attributes), DicomConfig())


def identity_error(radiograph: Radiograph) -> float:
    """Return the largest difference to the grey levels of a window over all 12 bits."""
    expected = read(ramp(), **WINDOW).pixels.astype(int)
    return float(np.abs(radiograph.pixels - expected).max())


CONTRADICTIONS = {
    "16 bits, entries of 12": table(list(range(4096)), 16),
    "14 bits, entries of 12": table(list(range(4096)), 14),
    "16 bits, entries of 8": table([value >> 4 for value in range(4096)], 16),
    "10 bits, entries of 12": table(list(range(4096)), 10),
    "8 bits, entries of 16": table([value * 16 for value in range(4096)], 8),
    "0 bits": table(list(range(4096)), 0),
    "17 bits": table(list(range(4096)), 17),
    "256 entries said, 4096 there": table(list(range(4096)), 12, length=256),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_table_that_contradicts_its_descriptor_goes_up_to_its_own_largest_entry(
    name: str,
) -> None:
    radiograph = read(ramp(), VOILUTSequence=CONTRADICTIONS[name])
    assert identity_error(radiograph) <= 1
    assert radiograph.header.window.startswith("VOI LUT 1 by its largest entry, ")
    assert radiograph.header.notes == ("voi_lut_damaged",)


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_window_beside_such_a_table_goes_before_it(name: str) -> None:
    radiograph = read(ramp(), VOILUTSequence=CONTRADICTIONS[name], **WINDOW)
    assert identity_error(radiograph) == 0
    assert radiograph.header.window.startswith("window 1 of 1")
    assert radiograph.header.notes == ("voi_lut_damaged",)


@pytest.mark.parametrize(
    "damaged",
    [table([0, 9], 12, length=4096), table([0] * 4096, 12), table([7], 12, length=65536)],
    ids=["too few", "all zero", "one of 65536"],
)
def test_a_table_without_a_use_leaves_window_or_own_range_and_is_flagged(
    damaged: list[Dataset],
) -> None:
    for attributes in ({}, WINDOW):
        radiograph = read(ramp(), VOILUTSequence=damaged, **attributes)
        assert identity_error(radiograph) <= 1
        assert radiograph.header.notes == ("voi_lut_damaged",)


def test_a_sound_table_that_is_dark_or_bent_is_applied_as_it_says() -> None:
    for bits, entries in ((12, [value // 2 + 100 for value in range(4096)]), (8, [128] * 4095)):
        radiograph = read(ramp(), VOILUTSequence=table(entries, bits), **WINDOW)
        assert radiograph.header.window == "VOI LUT 1"
        assert radiograph.header.notes == ()
        assert radiograph.pixels[0, 0] == round(entries[0] / (2**bits - 1) * 255)


def test_a_modality_table_of_fluoroscopy_is_not_for_display() -> None:
    square_root = table([round((value * 4095) ** 0.5) for value in range(4096)], 12)
    attributes = {"ModalityLUTSequence": square_root, **WINDOW}
    plain = read(ramp(), **attributes)
    assert identity_error(plain) > 50
    for extra in (attributes, {"RescaleSlope": 3, "RescaleIntercept": 9, **WINDOW}):
        linear = read(ramp(), SOPClassUID=FLUOROSCOPY, **extra)
        assert identity_error(linear) == 0
        assert linear.header.window.endswith("; without the Modality LUT, which is not for display")
    assert read(ramp(), SOPClassUID=FLUOROSCOPY, **WINDOW).header.window.endswith("width 4096")


def chest_in(padding: int, dtype: type[np.integer] = np.uint16) -> NDArray[np.integer]:
    stored = (np.arange(40 * 32).reshape(40, 32) % 1000 + 500).astype(dtype)
    stored[:5] = stored[-5:] = np.array(padding).astype(dtype)
    return stored


@pytest.mark.parametrize(
    ("vr", "value", "pixel", "bits", "dtype"),
    [
        ("SS", -1, 65535, 16, np.uint16),
        ("SS", -2000, 63536, 16, np.uint16),
        ("SS", -32768, 32768, 16, np.uint16),
        ("US", 65535, -1, 16, np.int16),
        ("US", 63536, -2000, 16, np.int16),
        ("US", 32768, -32768, 16, np.int16),
        ("US", 63488, -2048, 12, np.int16),
        ("US", 2048, -2048, 12, np.int16),
        ("US", 4095, -1, 12, np.int16),
        ("SS", -1, 4095, 12, np.uint16),
        ("US", 65535, 4095, 12, np.uint16),
        ("SS", -1, 1023, 10, np.uint16),
    ],
)
def test_a_padding_value_of_the_other_sign_is_the_pixel_of_the_same_bits(
    vr: str, value: int, pixel: int, bits: int, dtype: type[np.integer]
) -> None:
    stored = chest_in(pixel, dtype)
    if bits == 10:
        stored[5:-5] -= 480
    attributes = {"BitsStored": bits, "HighBit": bits - 1}
    content = encode_radiograph(stored, PLAIN, {**attributes, "PixelPaddingValue": 0})
    element = b"\x28\x00\x20\x01US\x02\x00\0\0"
    assert content.count(element) == 1 or np.issubdtype(dtype, np.signedinteger)
    raw = value.to_bytes(2, "little", signed=value < 0)
    for known in (element, element.replace(b"US", b"SS")):
        content = content.replace(known, b"\x28\x00\x20\x01" + vr.encode() + b"\x02\x00" + raw)
    pixels = read_radiograph(content, DicomConfig()).pixels
    assert not pixels[:5].any()
    assert not pixels[-5:].any()
    assert int(np.ptp(pixels[5:-5])) >= 254


def test_a_range_of_padding_may_have_the_other_sign_too() -> None:
    stored = chest_in(65500)
    stored[0, :9] = 65535
    attributes = {"BitsStored": 16, "HighBit": 15, "PixelPaddingValue": 65500}
    plain = encode_radiograph(stored, PLAIN, {**attributes, "PixelPaddingRangeLimit": 65535})
    expected = read_radiograph(plain, DicomConfig()).pixels
    signed = plain.replace(b"\x28\x00\x20\x01US", b"\x28\x00\x20\x01SS")
    signed = signed.replace(b"\x28\x00\x21\x01US", b"\x28\x00\x21\x01SS")
    assert signed != plain
    np.testing.assert_array_equal(read_radiograph(signed, DicomConfig()).pixels, expected)
    assert not expected[:5].any()


def test_white_is_not_padding_because_a_value_out_of_range_has_its_low_bits() -> None:
    stored = chest_in(700)
    stored[20, 10:20] = 4095
    content = encode_radiograph(stored, PLAIN, {"PixelPaddingValue": 65535})
    assert (read_radiograph(content, DicomConfig()).pixels[20, 10:20] == 255).all()


def test_a_palette_of_8_bits_under_a_descriptor_of_16_is_not_black() -> None:
    index = (np.arange(40 * 32) % 256).astype(np.uint8).reshape(40, 32)
    attributes: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    words = np.arange(256, dtype="<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        attributes[f"{colour}PaletteColorLookupTableData"] = words
    pixels = read(index, **attributes).pixels
    np.testing.assert_array_equal(pixels, index)
