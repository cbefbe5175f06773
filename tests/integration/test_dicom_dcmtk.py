"""Display images and compressed streams against DCMTK, which shares no code with the reader."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig
from chexradinet.dicom.file import open_dicom
from chexradinet.dicom.pixels import decoded, pixel_layout
from chexradinet.dicom.reader import read_radiograph
from chexradinet.phantom import WRITABLE_SYNTAXES, encode_radiograph

Run = Callable[..., None]
Scene = Callable[..., NDArray[np.integer]]


def rendered(dcmtk: Run, path: Path, *options: str) -> NDArray[np.int64]:
    """Return the 8-bit image that DCMTK makes of a file."""
    image = path.with_suffix(".pgm")
    dcmtk("dcm2pnm", *options, str(path), str(image))
    return np.asarray(Image.open(image), dtype=np.int64)


@pytest.mark.parametrize(
    ("encoder", "syntax"),
    [
        (("dcmcjpeg", "+e1"), uid.JPEGLosslessSV1),
        (("dcmcjpeg", "+el", "+sv", "6"), uid.JPEGLossless),
        (("dcmcjpls", "+el"), uid.JPEGLSLossless),
        (("dcmcrle",), uid.RLELossless),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_streams_of_dcmtk_decode_exactly(
    encoder: tuple[str, ...],
    syntax: uid.UID,
    dtype: type,
    scene: Scene,
    dcmtk: Run,
    tmp_path: Path,
) -> None:
    truth = scene(dtype)
    plain, coded = tmp_path / "plain.dcm", tmp_path / "coded.dcm"
    plain.write_bytes(encode_radiograph(truth, uid.ExplicitVRLittleEndian))
    dcmtk(*encoder, str(plain), str(coded))
    file = open_dicom(coded.read_bytes())
    assert file.transfer_syntax == syntax
    assert np.array_equal(decoded(file, pixel_layout(file.dataset)).stored, truth)


def table(first: int, length: int, bits: int, entries: list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [length, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return item


def as_words(item: Dataset, keyword: str, syntax: uid.UID) -> None:
    """Turn a table's entries, a list, into OW, whose bytes pydicom writes as they are."""
    order = "<u2" if syntax.is_little_endian else ">u2"
    entries = np.asarray(list(item[keyword].value), dtype=order).tobytes()
    item[keyword] = DataElement(item[keyword].tag, "OW", entries)


BENT = [round(1023 * (index / 4095) ** 0.6) for index in range(4096)]
CASES: dict[str, tuple[type, dict[str, object], tuple[str, ...]]] = {
    "window": (np.uint16, {"WindowCenter": 1800, "WindowWidth": 2500}, ("+Wi", "1")),
    "narrow window": (np.uint16, {"WindowCenter": 1800.5, "WindowWidth": 9}, ("+Wi", "1")),
    "rescale": (
        np.uint16,
        {
            "RescaleSlope": 0.5,
            "RescaleIntercept": -512,
            "WindowCenter": 300,
            "WindowWidth": 900,
        },
        ("+Wi", "1"),
    ),
    "signed": (np.int16, {"WindowCenter": 20, "WindowWidth": 3000}, ("+Wi", "1")),
    "inverted": (
        np.uint16,
        {
            "PhotometricInterpretation": "MONOCHROME1",
            "WindowCenter": 1800,
            "WindowWidth": 2500,
        },
        ("+Wi", "1"),
    ),
    "sigmoid": (
        np.uint16,
        {"WindowCenter": 1800, "WindowWidth": 2500, "VOILUTFunction": "SIGMOID"},
        ("+Wi", "1", "+Wfs"),
    ),
    "voi lut": (np.uint16, {"VOILUTSequence": [table(0, 4096, 10, BENT)]}, ("+Wl", "1")),
    "short voi lut": (
        np.uint16,
        {"VOILUTSequence": [table(1000, 2000, 10, BENT[1000:3000])]},
        ("+Wl", "1"),
    ),
    "modality lut": (
        np.uint16,
        {
            "ModalityLUTSequence": [table(0, 4096, 16, [4095 - i for i in range(4096)])],
            "WindowCenter": 1800,
            "WindowWidth": 2500,
        },
        ("+Wi", "1"),
    ),
    "no window": (np.uint16, {}, ("+Wm",)),
    "eight bits": (np.uint8, {}, ()),
    "eight bits rescaled": (np.uint8, {"RescaleSlope": 16, "RescaleIntercept": -1024}, ()),
    "eight bits falling": (np.uint8, {"RescaleSlope": -2, "RescaleIntercept": 300}, ()),
    "eight bits, modality lut": (
        np.uint8,
        {"ModalityLUTSequence": [table(0, 256, 12, [4000 - 15 * i for i in range(256)])]},
        (),
    ),
    "high bits": (
        np.uint16,
        {"BitsStored": 10, "HighBit": 11, "WindowCenter": 500, "WindowWidth": 700},
        ("+Wi", "1"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_display_image_is_that_of_dcmtk(
    case: str, scene: Scene, dcmtk: Run, tmp_path: Path
) -> None:
    dtype, attributes, options = CASES[case]
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(dtype), uid.ExplicitVRLittleEndian, attributes))
    ours = read_radiograph(path.read_bytes(), DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - rendered(dcmtk, path, *options)).max() <= 1


NATIVE = [syntax for syntax in WRITABLE_SYNTAXES if not syntax.is_encapsulated]


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("case", ["voi lut", "short voi lut", "modality lut"])
def test_a_lookup_table_is_read_in_every_byte_order_and_type(
    case: str, syntax: uid.UID, vr: str, scene: Scene, dcmtk: Run, tmp_path: Path
) -> None:
    dtype, attributes, options = CASES[case]
    attributes = copy.deepcopy(attributes)
    for sequence in (value for name, value in attributes.items() if name.endswith("Sequence")):
        assert isinstance(sequence, list)
        if vr == "OW":
            as_words(sequence[0], "LUTData", syntax)
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(dtype), syntax, attributes))
    ours = read_radiograph(path.read_bytes(), DicomConfig())
    assert "own range" not in ours.header.window
    difference = ours.pixels.astype(np.int64) - rendered(dcmtk, path, *options)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.keyword)
def test_a_palette_is_read_in_every_byte_order(
    syntax: uid.UID, bits: int, scene: Scene, dcmtk: Run, tmp_path: Path
) -> None:
    # Steep, so that neighbours that change places are seen.
    steep = [37 * level % 256 for level in range(256)]
    ramps = {"Red": steep[::-1], "Green": steep, "Blue": [7] * 256}
    attributes: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, ramp in ramps.items():
        words = np.asarray(ramp, dtype=np.uint16) * (250 if bits == 16 else 1)
        octets = words.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
        stored = np.frombuffer(octets, dtype="<u2")
        order = "<u2" if syntax.is_little_endian else ">u2"
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        attributes[f"{colour}PaletteColorLookupTableData"] = stored.astype(order).tobytes()
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(np.uint8), syntax, attributes))
    dcmtk("dcm2pnm", str(path), str(tmp_path / "x.ppm"))
    theirs = np.asarray(Image.open(tmp_path / "x.ppm").convert("L"), dtype=np.int64)
    ours = read_radiograph(path.read_bytes(), DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(
    "syntax",
    [s for s in WRITABLE_SYNTAXES if not s.is_encapsulated or s == uid.RLELossless],
    ids=lambda syntax: syntax.keyword,
)
def test_display_image_is_that_of_dcmtk_in_each_native_syntax(
    syntax: uid.UID, scene: Scene, dcmtk: Run, tmp_path: Path
) -> None:
    attributes = {"WindowCenter": 1800, "WindowWidth": 2500}
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(np.uint16), syntax, attributes))
    ours = read_radiograph(path.read_bytes(), DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - rendered(dcmtk, path, "+Wi", "1")).max() <= 1


@pytest.mark.parametrize("name", ["CR-MONO1-10-chest", "dx_dog_thorax_not_human"])
def test_a_real_file_looks_as_dcmtk_shows_it(
    name: str, shared_data: Path, dcmtk: Run, tmp_path: Path
) -> None:
    path = tmp_path / "real.dcm"
    shutil.copy(shared_data / "radiographs" / "dicom" / f"{name}.dcm", path)
    ours = read_radiograph(path.read_bytes(), DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - rendered(dcmtk, path, "+Wi", "1")).max() <= 1
