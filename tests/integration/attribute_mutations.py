"""Read DICOM files whose elements contradict each other, in sound encoding.

Run as `python -m tests.integration.attribute_mutations SEED COUNT`. Unlike changed bytes, these get
past the parser, to what is done with sizes, depths, colours, windows and tables. Type and length of
Pixel Data are changed as well.
"""

import copy
import io
import sys
from functools import lru_cache

import numpy as np
import pydicom
from pydicom import config, uid
from pydicom.dataset import Dataset

from chexradinet.phantom import encode_radiograph
from tests.dicom_files import with_pixel_bytes
from tests.integration.dicom_mutations import PATIENT_NAME, drawn, outcome
from tests.integration.mutations import read_cases

_NAME = "Müller"  # where a code belongs, whose characters are Latin-1
_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
)
_SIDES = ((1, 1), (33, 33), (40, 34), (35, 64), (64, 35), (3, 50))
_KINDS = ("u1", "u2", "i2", "colour")
_PHOTOMETRIC = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "", _NAME),
)
_VALUES: dict[str, tuple[str, tuple[object, ...]]] = {
    "SamplesPerPixel": ("US", (1, 2, 3, 4, None)),
    "PlanarConfiguration": ("US", (0, 1, 2)),
    "BitsAllocated": ("US", (1, 8, 12, 16, 32)),
    "BitsStored": ("US", (1, 6, 7, 8, 10, 12, 16)),
    "HighBit": ("US", (0, 7, 11, 15, None)),
    "PixelRepresentation": ("US", (0, 1, 2, None)),
    "Rows": ("US", (0, 32, 34, 36, 65535)),
    "Columns": ("US", (0, 33, 35, 65, 65535)),
    "NumberOfFrames": ("IS", ("0", "1", "-3", "2")),
    "WindowCenter": ("DS", ("0", ["1", "2"], "1e30", "-1e30", "1e400", "x", "")),
    "WindowWidth": ("DS", ("0", "1", "-1", "1e-9", "1e300", ["1", "2", "3"])),
    "VOILUTFunction": ("CS", ("SIGMOID", "LINEAR_EXACT", _NAME, "")),
    "RescaleSlope": ("DS", ("0", "16", "-1", "1e300", "1e307", "1e-300", "x")),
    "RescaleIntercept": ("DS", ("0", "-1024", "1e308", "nan")),
    "PixelPaddingValue": ("US", (0, 255, 4095, 65535)),
    "PixelPaddingRangeLimit": ("US", (0, 100, 65535)),
    "PixelAspectRatio": ("IS", (["1", "2"], ["0", "0"], ["1", "1000"], ["9", "1"])),
    "ImagerPixelSpacing": ("DS", (["0", "0"], [".1", ".9"], ["-1", "1"], ["1e9", "1"])),
    "PatientAge": ("AS", ("000Y", "050Y", _NAME)),
    "ViewPosition": ("CS", ("PA", "FRONTAL", "LL", _NAME)),
}
_NO_NUMBERS = ("x", "nan", "1e400")
_OFTEN, _SELDOM = 0.5, 0.12


@lru_cache
def _valid(syntax: uid.UID, sides: tuple[int, int], kind: str) -> Dataset:
    grey = drawn(*sides)
    octets = (grey >> 4).astype(np.uint8)
    stored = {"u2": grey, "i2": (grey - 2048).view(np.int16)}.get(kind, octets)
    if kind == "colour":
        stored = np.stack([octets, octets // 2, 255 - octets], axis=-1)
    content = encode_radiograph(stored, syntax, {"PatientName": PATIENT_NAME})
    return pydicom.dcmread(io.BytesIO(content))


def _drawn_of(random: np.random.Generator, values: tuple[object, ...]) -> object:
    return values[int(random.integers(len(values)))]


def _table(random: np.random.Generator) -> Dataset:
    item = Dataset()
    length = int(random.choice([0, 1, 2, 255, 256, 4096, 65535]))
    first, bits = (
        int(random.choice([0, 1, 4095, 32768, 65535])),
        int(random.choice([0, 1, 8, 16, 17])),
    )
    item.add_new("LUTDescriptor", "US", [length, first, bits])
    entries = random.integers(0, 65536, int(random.choice([0, 1, min(length, 4096)])))
    if random.integers(2):
        item.add_new("LUTData", "US", [int(entry) for entry in entries] or None)
    else:
        item.add_new("LUTData", "OW", entries.astype(random.choice(["<u2", "u1"])).tobytes())
    return item


def _palette(random: np.random.Generator) -> Dataset:
    found = Dataset()
    for name in ("Red", "Green", "Blue"):
        length = int(random.choice([0, 255, 256]))
        bits = int(random.choice([8, 16]))
        stem = f"{name}PaletteColorLookupTable"
        found.add_new(f"{stem}Descriptor", "US", [length, int(random.choice([0, 5])), bits])
        found.add_new(f"{stem}Data", "OW", bytes(int(random.choice([0, 3, 256, 512]))))
    return found


def contradicting(random: np.random.Generator) -> bytes:
    """Return a file of a random kind with some elements that do not fit the others."""
    syntax = _SYNTAXES[int(random.integers(len(_SYNTAXES)))]
    sides = _SIDES[int(random.integers(len(_SIDES)))]
    kinds = ("u1", "colour") if syntax == uid.JPEGBaseline8Bit else _KINDS
    with config.disable_value_validation():
        dataset = _contradicted(_valid(syntax, sides, str(_drawn_of(random, kinds))), random)
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset)
    return _with_other_pixels(stream.getvalue(), syntax, random)


def _contradicted(valid: Dataset, random: np.random.Generator) -> Dataset:
    dataset = copy.deepcopy(valid)
    if random.random() < _OFTEN:
        dataset.add_new("PhotometricInterpretation", "CS", _drawn_of(random, _PHOTOMETRIC))
    for keyword, (vr, values) in _VALUES.items():
        if random.random() < _SELDOM:
            value = _drawn_of(random, values)
            # As text, because pydicom writes no number that is none; implicit VR hides the type.
            dataset.add_new(keyword, "SH" if value in _NO_NUMBERS else vr, value)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        if random.random() < _SELDOM:
            tables = [_table(random) for _ in range(int(random.integers(3)))]
            dataset.add_new(keyword, "SQ", tables)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        dataset.update(_palette(random))
    return dataset


def _with_other_pixels(content: bytes, syntax: uid.UID, random: np.random.Generator) -> bytes:
    """Change type and length of native Pixel Data of explicit VR, half of the time."""
    explicit = syntax in (uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
    if not explicit or random.random() < _OFTEN:
        return content
    little = syntax.is_little_endian
    value = content[content.rindex(b"\xe0\x7f\x10\x00" if little else b"\x7f\xe0\x00\x10") + 12 :]
    lost = int(random.choice([0, 0, 1, 2, 3]))
    if random.random() < _OFTEN:
        value = value[: len(value) // 3 * 2]  # what shared colour needs
    kept = value[: len(value) - lost]
    return with_pixel_bytes(content, kept, str(random.choice(["OB", "OW"])), little=little)


if __name__ == "__main__":
    read_cases(int(sys.argv[1]), int(sys.argv[2]), contradicting, outcome)
