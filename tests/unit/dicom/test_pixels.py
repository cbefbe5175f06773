"""Pixels whose stream, length or offset table contradicts the header: read right, or refused."""

import io
import struct

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from chexradinet.config import DicomConfig
from chexradinet.dicom.codecs import values_of
from chexradinet.dicom.file import open_dicom
from chexradinet.dicom.pixels import Frame, decoded, pixel_layout
from chexradinet.dicom.reader import read_radiograph
from chexradinet.errors import RejectedImageError
from chexradinet.phantom import encode_radiograph, iter_phantom
from tests.dicom_files import patched, with_items, with_pixel_bytes, with_stream

LOSSLESS = [
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
]
TWELVE_BITS = [uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEG2000Lossless]
"""Those of which the writer makes streams of 12 bits; of the others, of 16."""
PLAIN = uid.ExplicitVRLittleEndian
each_syntax = pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)


def scene(low: int, high: int, dtype: type[np.integer] = np.uint16) -> NDArray[np.integer]:
    """Return a smooth picture of 48x40 px from the lowest to the highest value, with noise."""
    rows, columns = np.mgrid[0:48, 0:40]
    waves = (np.sin(columns / 9) * np.cos(rows / 7) + 1) / 2
    noise = np.random.default_rng(4).normal(0, 0.01, waves.shape)
    values = np.clip(waves + noise, 0, 1) * (high - low) + low
    return np.asarray(np.rint(values), dtype=dtype)


def with_bits(content: bytes, stored: int, high: int | None = None) -> bytes:
    """Return a file whose header names another depth than its pixels were written with."""
    content = patched(content, 0x0028, 0x0101, b"US", stored)
    return patched(content, 0x0028, 0x0102, b"US", stored - 1 if high is None else high)


def tiled_codestream(picture: NDArray[np.integer]) -> list[bytes]:
    """Return a lossless codestream of four tiles, taken apart: header, tiles, end marker."""
    written = io.BytesIO()
    tile = (picture.shape[1] // 2, picture.shape[0] // 2)
    Image.fromarray(picture).save(written, "JPEG2000", tile_size=tile, no_jp2=True)
    head, *tiles = written.getvalue().removesuffix(b"\xff\xd9").split(b"\xff\x90\x00\x0a")
    return [head, *(b"\xff\x90\x00\x0a" + tile for tile in tiles), b"\xff\xd9"]


def bytes_of_frame(content: bytes) -> bytes:
    (frame,) = generate_frames(pydicom.dcmread(io.BytesIO(content)).PixelData, number_of_frames=1)
    return frame


def frame_of(content: bytes) -> Frame:
    file = open_dicom(content)
    return decoded(file, pixel_layout(file.dataset))


def values_read(content: bytes) -> NDArray[np.int64]:
    frame = frame_of(content)
    return values_of(frame.stored, frame.layout)


def reason_of(content: bytes) -> str:
    with pytest.raises(RejectedImageError) as caught:
        frame_of(content)
    return str(caught.value)


@pytest.mark.parametrize("stored", [8, 10, 11])
@pytest.mark.parametrize("noise", [0, 600])
@pytest.mark.parametrize("syntax", [PLAIN, uid.ExplicitVRBigEndian, uid.RLELossless])
def test_whole_words_beyond_bits_stored_are_read_whole(
    syntax: uid.UID, noise: int, stored: int
) -> None:
    jitter = np.random.default_rng(1).integers(-noise, noise + 1, (48, 40))
    truth = np.clip(scene(0, 60_000) + jitter, 0, 65_535).astype(np.uint16)
    for pixels in (truth, scene(0, 4095)):
        written = encode_radiograph(pixels, syntax, {"BitsStored": stored, "HighBit": stored - 1})
        np.testing.assert_array_equal(values_read(written), pixels)
        assert frame_of(written).notes == ("stream_contradicts_bits_stored",)


@pytest.mark.parametrize("syntax", [PLAIN, uid.ExplicitVRBigEndian, uid.RLELossless])
def test_what_whole_words_hold_above_bits_stored_is_dropped(syntax: uid.UID) -> None:
    truth = scene(0, 4095)
    drawn = truth.copy()
    drawn[10:40:6, 5:30] |= 0x8000
    random = np.random.default_rng(2).integers(0, 16, truth.shape).astype(np.uint16) << 12
    for dirty in (drawn, truth | 0xA000, truth | random):
        content = encode_radiograph(dirty.astype(np.uint16), syntax)
        np.testing.assert_array_equal(values_read(content), truth)
        assert frame_of(content).notes == ()


@each_syntax
def test_values_beyond_bits_stored_are_those_of_the_stream(syntax: uid.UID) -> None:
    truth = scene(0, 4095)
    content = with_bits(encode_radiograph(truth, syntax), 10)
    np.testing.assert_array_equal(values_read(content), truth)
    assert frame_of(content).notes == ("stream_contradicts_bits_stored",)


@pytest.mark.parametrize("syntax", TWELVE_BITS, ids=lambda syntax: syntax.keyword)
def test_the_sign_is_where_the_stream_ends_and_not_where_the_header_says(syntax: uid.UID) -> None:
    # Drawn chests have two peaks: where the sign is wrong, their middle range grows too.
    drawn = (one.pixels.astype(np.int16) * 16 - 2048 for one in iter_phantom(6, 256, seed=3))
    for truth in (scene(-2000, 1500, np.int16), *drawn):
        content = with_bits(encode_radiograph(truth, syntax), 16)
        np.testing.assert_array_equal(values_read(content), truth)
        content = with_bits(encode_radiograph((truth + 2048).astype(np.uint16), syntax), 16)
        content = patched(content, 0x0028, 0x0103, b"US", 1)
        np.testing.assert_array_equal(values_read(content), truth + 2048)


@each_syntax
def test_a_sign_that_is_extended_beyond_bits_stored_is_a_sign(syntax: uid.UID) -> None:
    truth = scene(-300, 400, np.int16)
    for stored in (10, 12):
        written = encode_radiograph(truth, syntax, {"BitsStored": 16, "HighBit": 15})
        np.testing.assert_array_equal(values_read(with_bits(written, stored)), truth)


@each_syntax
def test_values_above_zero_keep_their_sign_in_a_stream_of_fewer_bits(syntax: uid.UID) -> None:
    content = with_bits(encode_radiograph(scene(0, 4095), syntax), 16)
    content = patched(content, 0x0028, 0x0103, b"US", 1)
    np.testing.assert_array_equal(values_read(content), scene(0, 4095))


@each_syntax
def test_a_high_bit_beyond_the_stream_does_not_cut_off_the_low_ones(syntax: uid.UID) -> None:
    truth = scene(0, 4095)
    written = encode_radiograph(truth, syntax)
    if syntax in TWELVE_BITS:
        np.testing.assert_array_equal(values_read(with_bits(written, 12, high=15)), truth)
    shifted = encode_radiograph(truth << 4, syntax, {"BitsStored": 16, "HighBit": 15})
    np.testing.assert_array_equal(values_read(with_bits(shifted, 12, high=15)), truth)


@each_syntax
def test_bits_of_an_overlay_above_bits_stored_are_dropped(syntax: uid.UID) -> None:
    truth = scene(0, 4095)
    drawn = truth.copy()
    drawn[10:40:6] |= 0x8000
    written = encode_radiograph(drawn, syntax, {"BitsStored": 16, "HighBit": 15})
    np.testing.assert_array_equal(values_read(with_bits(written, 12)), truth)


@pytest.mark.parametrize(
    "syntax",
    [uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K],
    ids=lambda syntax: syntax.keyword,
)
@pytest.mark.parametrize("is_signed", [False, True])
def test_white_that_a_lossy_stream_overshoots_stays_white(syntax: uid.UID, is_signed: bool) -> None:
    high = 511 if is_signed else 1023
    truth = scene(0, high)
    truth[::7, ::5] = truth[20:40, 20:30] = high
    truth[25:30, 22:26] = 0
    content = with_bits(encode_radiograph(truth, syntax), 10)
    content = patched(content, 0x0028, 0x0103, b"US", int(is_signed))
    values = values_read(content)
    assert values.max() > high
    assert np.abs(np.clip(values, 0, high) - truth.astype(np.int64)).max() <= 0.15 * high


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGLSLossless, uid.JPEGLosslessSV1])
def test_bytes_under_a_header_of_twelve_bits_are_shown_as_they_are(syntax: uid.UID) -> None:
    truth = scene(0, 255, np.uint8)
    content = encode_radiograph(truth, syntax, {"WindowCenter": 2048, "WindowWidth": 4096})
    content = patched(with_bits(content, 12), 0x0028, 0x0100, b"US", 16)
    radiograph = read_radiograph(content, DicomConfig())
    assert np.abs(radiograph.pixels.astype(int) - truth).max() <= 12
    assert radiograph.header.window.startswith("full range 0 to 255: the window is for pixels")
    assert radiograph.header.notes == ("stream_contradicts_bits_stored",)


def test_colour_of_more_than_eight_bits_in_the_stream_is_refused() -> None:
    colour = np.stack([scene(0, 200, np.uint8)] * 3, axis=-1)
    content = encode_radiograph(colour, uid.JPEGLSLossless)
    deep = bytes(imagecodecs.jpegls_encode(colour.astype(np.uint16) << 4))
    assert "unreadable: the stream has samples of 16 bits" in reason_of(with_stream(content, deep))


def jpeg_halves() -> tuple[bytes, bytes, bytes]:
    """Return a file, and its stream in two parts of even length."""
    content = encode_radiograph(scene(0, 4095), uid.JPEGLosslessSV1)
    stream = bytes(open_dicom(content).pixel_data[20:])
    stream = stream[: stream.rindex(b"\xff\xd9") + 2]
    stream += bytes(len(stream) % 2)
    half = len(stream) // 4 * 2
    return content, stream[:half], stream[half:]


@pytest.mark.parametrize(
    "table",
    [
        lambda first, second: struct.pack("<2I", 0, 8 + len(first)),
        lambda first, second: struct.pack("<3I", 0, 8 + len(first), 16 + len(first + second)),
        lambda first, second: struct.pack("<I", 0),
        lambda first, second: b"",
        lambda first, second: struct.pack("<2I", 77, 5),
        lambda first, second: b"\0\0\0",
    ],
    ids=["each fragment", "and the end", "one", "empty", "nonsense", "odd"],
)
def test_fragments_are_one_stream_whatever_the_offset_table_says(table: object) -> None:
    assert callable(table)
    content, first, second = jpeg_halves()
    np.testing.assert_array_equal(
        values_read(with_items(content, table(first, second), first, second)), scene(0, 4095)
    )


def test_a_stream_without_an_offset_table_before_it_is_read() -> None:
    content, first, second = jpeg_halves()
    np.testing.assert_array_equal(values_read(with_items(content, first, second)), scene(0, 4095))
    np.testing.assert_array_equal(values_read(with_items(content, first + second)), scene(0, 4095))


def test_two_streams_are_two_frames_also_where_the_header_says_one() -> None:
    content, first, second = jpeg_halves()
    table = struct.pack("<2I", 0, 8 + len(first + second))
    assert "multi_frame: 2 streams" in reason_of(
        with_items(content, table, first + second, first + second)
    )
    rle = encode_radiograph(scene(0, 4095), uid.RLELossless, {"NumberOfFrames": 1})
    frame = bytes(open_dicom(rle).pixel_data[20:])
    assert "multi_frame" in reason_of(with_items(rle, b"", frame, frame))


def test_compressed_pixels_without_a_stream_are_refused_as_what_they_are() -> None:
    content, first, _ = jpeg_halves()
    assert "Pixel Data hold no fragment" in reason_of(with_items(content, b""))
    plain = encode_radiograph(scene(0, 4095), PLAIN)
    fragments = bytes(encapsulate([first]))
    assert "unreadable: the pixels are compressed" in reason_of(
        with_pixel_bytes(plain, fragments, "OW")
    )


@pytest.mark.parametrize("num_spare", [1, 2, 100, 129, 5_000])
@pytest.mark.parametrize("as_run", [True, False])
def test_what_an_rle_segment_holds_beyond_the_image_is_left_out(
    num_spare: int, as_run: bool
) -> None:
    truth = scene(0, 4095)
    spare = bytes(num_spare) if as_run else bytes(range(256)) * 20
    segments = []
    for plane in ((truth >> 8).astype(np.uint8), (truth & 255).astype(np.uint8)):
        packed = bytes(imagecodecs.packbits_encode(plane.tobytes() + spare[:num_spare]))
        segments.append(packed + bytes(len(packed) % 2))
    head = struct.pack("<3I", 2, 64, 64 + len(segments[0])).ljust(64, b"\0")
    content = with_stream(encode_radiograph(truth, uid.RLELossless), head + b"".join(segments))
    np.testing.assert_array_equal(values_read(content), truth)


def test_an_rle_segment_of_too_few_bytes_is_truncated() -> None:
    truth = scene(0, 255, np.uint8)
    packed = bytes(imagecodecs.packbits_encode(truth.tobytes()[:-40]))
    head = struct.pack("<2I", 1, 64).ljust(64, b"\0")
    content = with_stream(encode_radiograph(truth, uid.RLELossless), head + packed)
    assert "truncated: an RLE segment holds 1880 of 1920 bytes" in reason_of(content)


@pytest.mark.parametrize("num_spare", [2, 80, 82, 1_000, 3_838])
@pytest.mark.parametrize("fill", [b"\0", b"\x5a"])
def test_bytes_after_uncompressed_pixels_are_padding_and_flagged(
    num_spare: int, fill: bytes
) -> None:
    truth = scene(0, 4095)
    for syntax, order in ((PLAIN, "<u2"), (uid.ExplicitVRBigEndian, ">u2")):
        padded = truth.astype(order).tobytes() + fill * num_spare
        written = encode_radiograph(truth, syntax)
        content = with_pixel_bytes(written, padded, "OW", little=syntax.is_little_endian)
        np.testing.assert_array_equal(values_read(content), truth)
        assert frame_of(content).notes == ("excess_pixel_bytes",)


def test_the_byte_that_makes_the_length_even_is_no_excess() -> None:
    truth = scene(0, 255, np.uint8)[:47, :39]
    content = encode_radiograph(np.ascontiguousarray(truth), PLAIN)
    assert frame_of(content).notes == ()


def test_more_fragments_than_an_x_ray_has_are_too_large() -> None:
    content = encode_radiograph(scene(0, 4095), uid.JPEG2000Lossless)
    assert reason_of(with_items(content, *[b"ab"] * 60_000)).startswith("too_large: more than")


@pytest.mark.parametrize("missing", range(4))
def test_a_codestream_that_lacks_a_tile_is_truncated(missing: int) -> None:
    truth = scene(0, 255, np.uint8)
    written = encode_radiograph(truth, uid.JPEG2000Lossless)
    head, *tiles = tiled_codestream(truth)
    np.testing.assert_array_equal(
        values_read(with_stream(written, b"".join([head, *tiles]))), truth
    )
    del tiles[missing]
    reason = reason_of(with_stream(written, b"".join([head, *tiles])))
    assert reason.startswith("truncated: the codestream holds 3 of 4 tiles")


def test_a_codestream_that_lacks_parts_of_its_tile_is_truncated() -> None:
    written = encode_radiograph(scene(0, 4095), uid.JPEG2000Lossless)
    stream = bytearray(bytes_of_frame(written))
    stream[stream.index(b"\xff\x90") + 11] = 2  # tile-parts of its tile
    assert reason_of(with_stream(written, bytes(stream))).startswith("truncated: the codestream")


def test_the_last_tile_may_leave_its_length_out() -> None:
    truth = scene(0, 4095)
    written = encode_radiograph(truth, uid.JPEG2000Lossless)
    stream = bytearray(bytes_of_frame(written))
    place = stream.index(b"\xff\x90") + 6
    stream[place : place + 4] = bytes(4)
    np.testing.assert_array_equal(values_read(with_stream(written, bytes(stream))), truth)


def test_uncompressed_bytes_of_a_second_frame_are_not_padding() -> None:
    truth = scene(0, 4095)
    content = with_pixel_bytes(encode_radiograph(truth, PLAIN), truth.tobytes() * 2, "OW")
    assert "multi_frame: 2 frames by the length of the pixels" in reason_of(content)


def test_flags_reach_the_header() -> None:
    content = with_bits(encode_radiograph(scene(0, 4095), uid.JPEGLosslessSV1), 10)
    notes = read_radiograph(content, DicomConfig()).header.notes
    assert notes == ("stream_contradicts_bits_stored",)
