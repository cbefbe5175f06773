"""Every transfer syntax against the truth, and display images against independent readers.

Truth is the array that was written. Independent are DCMTK (`dcm2pnm` and its encoders) and GDCM,
through SimpleITK: neither shares code with the decoders under test.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from chexradinet.config import DicomConfig
from chexradinet.dataset.dicom import read_radiograph
from chexradinet.dataset.dicom_file import open_dicom
from chexradinet.dataset.dicom_pixels import pixel_layout, stored_pixels
from chexradinet.dataset.dicom_write import LOSSY_SYNTAXES, WRITABLE_SYNTAXES, encode_radiograph

Pixels = NDArray[np.integer]

# Largest error of a lossy stream, in stored values of 12 bits.
TOLERANCE = {
    uid.JPEGBaseline8Bit: 8,
    uid.JPEGExtended12Bit: 16,
    uid.JPEGLSNearLossless: 2,
    uid.JPEG2000: 24,
    uid.HTJ2K: 16,
}
HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)


def dcmtk(*command: str) -> None:
    """Run a program of DCMTK; skip where it is not installed, but never in CI."""
    if shutil.which(command[0]) is None:
        reason = f"{command[0]} is not installed: apt-get install dcmtk"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def rendered(path: Path, *options: str) -> NDArray[np.int64]:
    """Return the 8-bit image that DCMTK makes of a file."""
    image = path.with_suffix(".pgm")
    dcmtk("dcm2pnm", *options, str(path), str(image))
    return np.asarray(Image.open(image), dtype=np.int64)


def scene(dtype: type, rows: int = 67, columns: int = 51) -> Pixels:
    """Return a smooth 12-bit scene with noise; odd sides, so that padding bytes are needed."""
    row, column = np.mgrid[0:rows, 0:columns]
    noise = np.random.default_rng(3).normal(0, 12, row.shape)
    values = np.clip(2048 + 1700 * np.sin(column / 9) * np.cos(row / 7) + noise, 0, 4095)
    if dtype is np.uint8:
        return np.asarray(values / 16, dtype=np.uint8)
    offset = 2048 if dtype is np.int16 else 0
    return np.asarray(values - offset, dtype=dtype)


def pairs(*dtypes: type) -> list[tuple[uid.UID, type]]:
    """Return every transfer syntax with every pixel type that it can hold."""
    return [
        (syntax, dtype)
        for syntax in WRITABLE_SYNTAXES
        for dtype in dtypes
        if syntax != uid.JPEGBaseline8Bit or dtype is np.uint8
    ]


def values_read(content: bytes) -> NDArray[np.int64]:
    """Return decoded stored values with their sign."""
    file = open_dicom(content)
    layout = pixel_layout(file.dataset)
    values = stored_pixels(file, layout).astype(np.int64) & ((1 << layout.bits_stored) - 1)
    half = 1 << (layout.bits_stored - 1)
    return (values ^ half) - half if layout.is_signed else values


@pytest.mark.parametrize(("syntax", "dtype"), pairs(np.uint8, np.uint16, np.int16))
def test_decoded_pixels_are_those_written(syntax: uid.UID, dtype: type) -> None:
    truth = scene(dtype)
    error = np.abs(values_read(encode_radiograph(truth, syntax)) - truth)
    assert error.max() <= TOLERANCE.get(syntax, 0)
    assert (error.max() > 0) == (syntax in LOSSY_SYNTAXES)


@pytest.mark.parametrize(
    ("syntax", "dtype"), [pair for pair in pairs(np.uint8, np.uint16) if pair[0] not in HTJ2K]
)
def test_gdcm_reads_the_same_values(syntax: uid.UID, dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(dtype), syntax))
    image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    theirs = SimpleITK.GetArrayFromImage(image)[0].astype(np.int64)
    # Decoders of lossy JPEG may round differently by one.
    assert np.abs(values_read(path.read_bytes()) - theirs).max() <= (syntax in LOSSY_SYNTAXES)


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
    encoder: tuple[str, ...], syntax: uid.UID, dtype: type, tmp_path: Path
) -> None:
    truth = scene(dtype)
    plain, coded = tmp_path / "plain.dcm", tmp_path / "coded.dcm"
    plain.write_bytes(encode_radiograph(truth, uid.ExplicitVRLittleEndian))
    dcmtk(*encoder, str(plain), str(coded))
    content = coded.read_bytes()
    assert open_dicom(content).transfer_syntax == syntax
    assert np.array_equal(values_read(content), truth)


def table(first: int, length: int, bits: int, entries: list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [length, first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = entries
    item["LUTData"].VR = "US"
    return item


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
    "high bits": (
        np.uint16,
        {"BitsStored": 10, "HighBit": 11, "WindowCenter": 500, "WindowWidth": 700},
        ("+Wi", "1"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_display_image_is_that_of_dcmtk(case: str, tmp_path: Path) -> None:
    dtype, attributes, options = CASES[case]
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(dtype), uid.ExplicitVRLittleEndian, attributes))
    ours = read_radiograph(path, DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - rendered(path, *options)).max() <= 1


@pytest.mark.parametrize(
    "syntax",
    [s for s in WRITABLE_SYNTAXES if not s.is_encapsulated or s == uid.RLELossless],
    ids=lambda syntax: syntax.keyword,
)
def test_display_image_is_that_of_dcmtk_in_each_native_syntax(
    syntax: uid.UID, tmp_path: Path
) -> None:
    attributes = {"WindowCenter": 1800, "WindowWidth": 2500}
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(np.uint16), syntax, attributes))
    ours = read_radiograph(path, DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - rendered(path, "+Wi", "1")).max() <= 1


def colour_scene(rows: int = 66, columns: int = 52) -> NDArray[np.uint8]:
    grey = scene(np.uint8, rows, columns).astype(np.uint8)
    return np.stack([grey, 255 - grey, grey // 2], axis=-1)


def planar(colour: NDArray[np.uint8]) -> bytes:
    attributes = {"PlanarConfiguration": 1}
    planes = np.ascontiguousarray(np.moveaxis(colour, -1, 0)).reshape(colour.shape)
    return encode_radiograph(planes, uid.ExplicitVRLittleEndian, attributes)


@pytest.mark.parametrize(
    "written",
    [
        lambda colour: encode_radiograph(colour, uid.ExplicitVRLittleEndian),
        lambda colour: encode_radiograph(colour, uid.RLELossless),
        lambda colour: encode_radiograph(colour, uid.JPEGLSLossless),
        planar,
    ],
    ids=["by pixel", "rle", "jpeg-ls", "by plane"],
)
def test_colour_becomes_luma(written: Callable[[NDArray[np.uint8]], bytes]) -> None:
    colour = colour_scene()
    luma = np.asarray(Image.fromarray(colour).convert("L"), dtype=np.int64)
    ours = read_radiograph(written(colour), DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - luma).max() <= 1


def test_a_colour_jpeg_becomes_luma() -> None:
    grey = scene(np.uint8, 64, 64).astype(np.uint8)
    colour = np.stack([grey, grey, grey], axis=-1)
    attributes = {"PhotometricInterpretation": "YBR_FULL_422"}
    content = encode_radiograph(colour, uid.JPEGBaseline8Bit, attributes)
    ours = read_radiograph(content, DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - grey).max() <= 8


def test_a_palette_becomes_luma() -> None:
    index = scene(np.uint8).astype(np.uint8)
    ramps = {"Red": [255 - i for i in range(256)], "Green": list(range(256)), "Blue": [7] * 256}
    attributes: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, ramp in ramps.items():
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        attributes[f"{colour}PaletteColorLookupTableData"] = bytes(ramp)
    content = encode_radiograph(index, uid.ExplicitVRLittleEndian, attributes)
    weights = (0.299, 0.587, 0.114)
    expected = sum(
        weight * np.asarray(ramp)[index]
        for weight, ramp in zip(weights, ramps.values(), strict=True)
    )
    ours = read_radiograph(content, DicomConfig()).pixels
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("name", ["CR-MONO1-10-chest", "dx_dog_thorax_not_human"])
def test_a_real_file_looks_as_dcmtk_shows_it(name: str, shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "real.dcm"
    shutil.copy(shared_data / "radiographs" / "dicom" / f"{name}.dcm", path)
    ours = read_radiograph(path, DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - rendered(path, "+Wi", "1")).max() <= 1


def test_the_real_jpeg_2000_file_holds_what_gdcm_decodes(shared_data: Path) -> None:
    path = shared_data / "radiographs" / "dicom" / "RG1_J2KI.dcm"
    image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    # This reader turns MONOCHROME1 around itself.
    theirs = 32767.0 - SimpleITK.GetArrayFromImage(image)[0]
    assert np.abs(values_read(path.read_bytes()) - theirs).max() <= 1
    windowed = ((theirs - 14999.5) / 29999 + 0.5).clip(0, 1)
    ours = read_radiograph(path, DicomConfig()).pixels
    assert np.abs(ours - 255 * (1 - windowed)).max() <= 1


def test_the_real_nih_file_is_the_png_of_the_same_exposure(shared_data: Path) -> None:
    folder = shared_data / "radiographs"
    ours = read_radiograph(folder / "dicom" / "nih_00000002_000_google.dcm", DicomConfig()).pixels
    png = Image.open(folder / "images" / "00000002_000.png").convert("L")
    halved = Image.fromarray(ours).resize(png.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(halved, dtype=np.int64) - np.asarray(png, dtype=np.int64))
    assert difference.max() <= 1


def test_a_source_may_be_bytes_or_a_path_with_unicode(tmp_path: Path) -> None:
    content = encode_radiograph(scene(np.uint16), uid.ExplicitVRLittleEndian)
    path = tmp_path / "with space Ł.dcm"
    path.write_bytes(content)
    link = tmp_path / "link.dcm"
    link.symlink_to(path)
    from_bytes = read_radiograph(content, DicomConfig()).pixels
    for source in (path, link):
        assert np.array_equal(read_radiograph(source, DicomConfig()).pixels, from_bytes)
