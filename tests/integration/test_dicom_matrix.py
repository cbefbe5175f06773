"""Every transfer syntax against the array that was written, and against GDCM through SimpleITK.

GDCM shares no code with the decoders under test.
"""

import io
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.encaps import generate_frames

from chexradinet.config import DicomConfig
from chexradinet.dicom.file import open_dicom
from chexradinet.dicom.pixels import decoded, pixel_layout
from chexradinet.dicom.reader import read_radiograph
from chexradinet.errors import RejectedImageError
from chexradinet.phantom import WRITABLE_SYNTAXES, encode_radiograph
from tests.dicom_files import with_stream

Scene = Callable[..., NDArray[np.integer]]

# Largest error of a lossy stream, in stored values of 12 bits.
TOLERANCE = {
    uid.JPEGBaseline8Bit: 8,
    uid.JPEGExtended12Bit: 16,
    uid.JPEGLSNearLossless: 2,
    uid.JPEG2000: 24,
    uid.HTJ2K: 16,
}
HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)


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
    stored, layout, _ = decoded(file, pixel_layout(file.dataset))
    values = stored.astype(np.int64) & ((1 << layout.bits_stored) - 1)
    half = 1 << (layout.bits_stored - 1)
    return (values ^ half) - half if layout.is_signed else values


@pytest.mark.parametrize(("syntax", "dtype"), pairs(np.uint8, np.uint16, np.int16))
def test_decoded_pixels_are_those_written(syntax: uid.UID, dtype: type, scene: Scene) -> None:
    truth = scene(dtype)
    error = np.abs(values_read(encode_radiograph(truth, syntax)) - truth)
    assert error.max() <= TOLERANCE.get(syntax, 0)
    assert (error.max() > 0) == (syntax in TOLERANCE)


@pytest.mark.parametrize(
    ("syntax", "dtype"), [pair for pair in pairs(np.uint8, np.uint16) if pair[0] not in HTJ2K]
)
def test_gdcm_reads_the_same_values(
    syntax: uid.UID, dtype: type, scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(encode_radiograph(scene(dtype), syntax))
    image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    theirs = SimpleITK.GetArrayFromImage(image)[0].astype(np.int64)
    # Decoders of lossy JPEG may round differently by one.
    assert np.abs(values_read(path.read_bytes()) - theirs).max() <= (syntax in TOLERANCE)


def colour_scene(scene: Scene) -> NDArray[np.uint8]:
    grey = scene(np.uint8, 66, 52).astype(np.uint8)
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
def test_colour_becomes_luma(written: Callable[[NDArray[np.uint8]], bytes], scene: Scene) -> None:
    colour = colour_scene(scene)
    luma = np.asarray(Image.fromarray(colour).convert("L"), dtype=np.int64)
    ours = read_radiograph(written(colour), DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - luma).max() <= 1


def test_a_colour_jpeg_becomes_luma(scene: Scene) -> None:
    grey = scene(np.uint8, 64, 64).astype(np.uint8)
    colour = np.stack([grey, grey, grey], axis=-1)
    attributes = {"PhotometricInterpretation": "YBR_FULL_422"}
    content = encode_radiograph(colour, uid.JPEGBaseline8Bit, attributes)
    ours = read_radiograph(content, DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - grey).max() <= 8


JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0"
ADOBE_YCBCR = ADOBE_RGB[:-1] + b"\1"


def jpeg_stream(colour: NDArray[np.uint8], space: str, markers: bytes) -> bytes:
    """Return a lossy stream in a colour space, with these markers and no others about it."""
    written = bytes(
        imagecodecs.jpeg8_encode(colour, level=98, subsampling="444", outcolorspace=space)
    )
    tables = written.index(b"\xff\xdb")
    # Libjpeg names components R, G and B where they are; 1, 2 and 3 say nothing.
    frame = written.index(b"\xff\xc0")
    names = frame + 10
    scan = written.index(b"\xff\xda") + 5
    stream = bytearray(written)
    for index in range(3):
        stream[names + 3 * index] = stream[scan + 2 * index] = index + 1
    return bytes(stream[:2] + markers + stream[tables:])


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize(
    ("space", "markers"),
    [("YCBCR", JFIF), ("YCBCR", ADOBE_YCBCR), ("YCBCR", JFIF + ADOBE_RGB), ("RGB", ADOBE_RGB)],
    ids=["jfif", "adobe ycbcr", "jfif before adobe", "adobe rgb"],
)
def test_a_colour_jpeg_that_names_its_colours_is_believed_over_the_header(
    photometric: str, space: str, markers: bytes, scene: Scene
) -> None:
    colour = colour_scene(scene)
    stream = jpeg_stream(colour, space, markers)
    attributes = {"PhotometricInterpretation": photometric}
    content = with_stream(encode_radiograph(colour, uid.JPEGBaseline8Bit, attributes), stream)
    radiograph = read_radiograph(content, DicomConfig())
    ours = radiograph.pixels.astype(np.int64)
    # Pillow has the stream alone, and libjpeg's rules.
    theirs = np.asarray(Image.open(io.BytesIO(stream)).convert("RGB").convert("L"), dtype=np.int64)
    truth = np.asarray(Image.fromarray(colour).convert("L"), dtype=np.int64)
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(ours - truth).max() <= 6
    flagged = "stream_contradicts_photometric" in radiograph.header.notes
    assert flagged == (photometric.startswith("YBR") == (space == "RGB"))


def test_a_colour_jpeg_that_names_no_colours_is_what_the_header_says(scene: Scene) -> None:
    colour = colour_scene(scene)
    truth = np.asarray(Image.fromarray(colour).convert("L"), dtype=np.int64)
    for space, photometric in (("RGB", "RGB"), ("YCBCR", "YBR_FULL_422"), ("YCBCR", "YBR_FULL")):
        attributes = {"PhotometricInterpretation": photometric}
        content = with_stream(
            encode_radiograph(colour, uid.JPEGBaseline8Bit, attributes),
            jpeg_stream(colour, space, b""),
        )
        radiograph = read_radiograph(content, DicomConfig())
        assert np.abs(radiograph.pixels.astype(np.int64) - truth).max() <= 6, photometric
        assert radiograph.header.notes == ()


def test_gdcm_and_the_reader_agree_on_the_luma_of_a_misdeclared_jpeg(
    scene: Scene, tmp_path: Path
) -> None:
    colour = colour_scene(scene)
    content = with_stream(
        encode_radiograph(colour, uid.JPEGBaseline8Bit, {"PhotometricInterpretation": "RGB"}),
        jpeg_stream(colour, "YCBCR", JFIF),
    )
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    # GDCM believes the header and hands the three components out as they are: the first is luma.
    theirs = SimpleITK.GetArrayFromImage(image).reshape(colour.shape)[..., 0].astype(np.int64)
    ours = read_radiograph(content, DicomConfig()).pixels.astype(np.int64)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("tail", [b"\xff", b"\x0a\0", b"\0" * 500, bytes(range(40))], ids=len)
@pytest.mark.parametrize(
    "syntax",
    [
        uid.JPEGBaseline8Bit,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
        uid.HTJ2KLossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_what_follows_the_end_of_a_stream_is_padding(
    syntax: uid.UID, tail: bytes, scene: Scene
) -> None:
    content = encode_radiograph(scene(np.uint8), syntax)
    whole = next(generate_frames(pydicom.dcmread(io.BytesIO(content)).PixelData))
    stream = whole[: whole.rindex(b"\xff\xd9") + 2]
    padded = read_radiograph(with_stream(content, stream + tail), DicomConfig())
    assert np.array_equal(padded.pixels, read_radiograph(content, DicomConfig()).pixels)
    for cut in (stream[:-2], stream[:-2] + tail, stream + b"\1" * 70):
        with pytest.raises(RejectedImageError, match="truncated: the stream has no end marker"):
            read_radiograph(with_stream(content, cut), DicomConfig())


def test_a_palette_becomes_luma(scene: Scene) -> None:
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


def test_the_real_jpeg_2000_file_holds_what_gdcm_decodes(shared_data: Path) -> None:
    path = shared_data / "radiographs" / "dicom" / "RG1_J2KI.dcm"
    image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    # This reader turns MONOCHROME1 around itself.
    theirs = 32767.0 - SimpleITK.GetArrayFromImage(image)[0]
    assert np.abs(values_read(path.read_bytes()) - theirs).max() <= 1
    windowed = ((theirs - 14999.5) / 29999 + 0.5).clip(0, 1)
    ours = read_radiograph(path.read_bytes(), DicomConfig()).pixels
    assert np.abs(ours - 255 * (1 - windowed)).max() <= 1


def test_the_real_nih_file_is_the_png_of_the_same_exposure(shared_data: Path) -> None:
    folder = shared_data / "radiographs"
    content = (folder / "dicom" / "nih_00000002_000_google.dcm").read_bytes()
    ours = read_radiograph(content, DicomConfig()).pixels
    png = Image.open(folder / "images" / "00000002_000.png").convert("L")
    halved = Image.fromarray(ours).resize(png.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(halved, dtype=np.int64) - np.asarray(png, dtype=np.int64))
    assert difference.max() <= 1
