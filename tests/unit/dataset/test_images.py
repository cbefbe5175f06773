import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from chexradinet.dataset.images import pixel_digest, read_image
from chexradinet.errors import RejectedImageError
from chexradinet.records import RejectReason

RAMP = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def reason_of(content: bytes) -> RejectReason:
    with pytest.raises(RejectedImageError) as caught:
        read_image(content)
    return RejectReason(caught.value.reason)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of_size(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_empty_file_is_truncated() -> None:
    assert reason_of(b"") is RejectReason.TRUNCATED


@pytest.mark.parametrize("content", [b"not an image", b"GIF89a" + bytes(100), b"\0" * 500])
def test_file_of_another_kind_is_not_an_image(content: bytes) -> None:
    assert reason_of(content) is RejectReason.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_file_cut_short_is_truncated(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    cut = max(12, int(len(content) * part))
    assert reason_of(content[:cut]) is RejectReason.TRUNCATED


def test_png_damaged_inside_is_unreadable() -> None:
    content = bytearray(encoded(Image.fromarray(RAMP)))
    start = content.index(b"IDAT") + 6
    content[start : start + 20] = bytes(20)
    assert reason_of(bytes(content)) is RejectReason.UNREADABLE


def test_png_without_its_palette_is_unreadable() -> None:
    content = encoded(Image.fromarray(RAMP).convert("P"))
    start = content.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", content[start : start + 4])
    assert reason_of(content[:start] + content[start + 12 + length :]) is RejectReason.UNREADABLE


@pytest.mark.parametrize("error", [AssertionError, KeyError, TypeError, IndexError])
def test_whatever_the_decoder_raises_is_unreadable(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    content = encoded(Image.fromarray(RAMP))
    monkeypatch.setattr(Image.Image, "convert", fail)
    assert reason_of(content) is RejectReason.UNREADABLE


def test_absurd_size_is_implausible_and_allocates_nothing() -> None:
    assert reason_of(png_of_size(10_000, 8_000)) is RejectReason.IMPLAUSIBLE
    assert reason_of(png_of_size(12_000, 9_000)) is RejectReason.IMPLAUSIBLE  # Pillow warns
    assert reason_of(png_of_size(2**30, 2**30)) is RejectReason.IMPLAUSIBLE  # Pillow refuses


def test_header_that_promises_more_pixels_than_follow_is_not_read() -> None:
    assert reason_of(png_of_size(100, 100)) is RejectReason.TRUNCATED


def test_animation_is_multi_frame() -> None:
    frames = [Image.fromarray(RAMP + shift) for shift in (0, 50)]
    content = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert reason_of(content) is RejectReason.MULTI_FRAME


def test_constant_image_is_rejected() -> None:
    assert reason_of(encoded(Image.new("L", (64, 64), 7))) is RejectReason.CONSTANT


def test_image_below_32_px_is_too_small() -> None:
    assert reason_of(encoded(Image.fromarray(RAMP[:31]))) is RejectReason.TOO_SMALL
    assert read_image(encoded(Image.fromarray(RAMP[:32]))).shape == (32, 60)


def test_eight_bit_grey_is_read_as_it_is() -> None:
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(RAMP))), RAMP)


def test_three_equal_channels_are_the_grey_image() -> None:
    colour = np.repeat(RAMP[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(colour))), RAMP)


def test_palette_is_looked_up() -> None:
    image = Image.fromarray(RAMP).convert("P")
    image.putpalette([value for level in range(256) for value in [255 - level] * 3])
    np.testing.assert_array_equal(read_image(encoded(image)), 255 - np.asarray(image))


def test_transparency_is_composed_over_black() -> None:
    layers = np.full((40, 40, 4), 200, np.uint8)
    layers[:20, :, 3] = 255
    layers[20:30, :, 3] = 51  # a fifth
    layers[30:, :, 3] = 0
    pixels = read_image(encoded(Image.fromarray(layers)))
    assert pixels[[0, 25, 35], 0].tolist() == [200, 40, 0]


def test_transparent_grey_is_composed_over_black() -> None:
    image = Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (60, 40), 51)))
    np.testing.assert_allclose(read_image(encoded(image)), RAMP / 5, atol=0.51)


@pytest.mark.parametrize(
    ("highest", "largest"),
    [
        (65535, 65535),
        (16384, 65535),
        (16383, 16383),
        (4096, 16383),
        (4095, 4095),
        (1024, 4095),
        (1023, 1023),
        (256, 1023),
    ],
)
def test_sixteen_bits_are_mapped_linearly_from_their_depth(highest: int, largest: int) -> None:
    deep = np.linspace(0, highest, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = read_image(encoded(Image.fromarray(deep)))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.floor(deep * 255.0 / largest + 0.5))


@pytest.mark.parametrize(
    ("bits", "highest", "largest"),
    [
        (15, 32767, 32767),
        (15, 900, 32767),
        (12, 1000, 4095),
        (16, 4095, 65535),
        (12, 65520, 65535),  # spread over the whole range, as the specification wants it
        (0, 1000, 1023),  # no valid depth
        (17, 1000, 1023),
    ],
)
def test_a_png_that_tells_its_depth_is_believed(bits: int, highest: int, largest: int) -> None:
    deep = np.linspace(0, highest, 64 * 64).reshape(64, 64).astype(np.uint16)
    plain = encoded(Image.fromarray(deep))
    end_of_head = 8 + 25
    content = plain[:end_of_head] + chunk(b"sBIT", bytes([bits])) + plain[end_of_head:]
    np.testing.assert_array_equal(read_image(content), np.floor(deep * 255.0 / largest + 0.5))


def png_of_layers(layers: np.ndarray) -> bytes:
    """Return a 16-bit PNG of two (grey, alpha), three (RGB) or four (RGB, alpha) layers."""
    height, width, count = layers.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in layers.astype(">u2"))
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("largest", [255, 1023, 4095, 65535])
def test_sixteen_bit_colour_and_opaque_layers_are_read_like_sixteen_bit_grey(
    count: int, largest: int
) -> None:
    deep = np.linspace(0, largest, 64 * 64).reshape(64, 64).astype(np.uint16)
    layers = [deep] * (count - 1 + count % 2) + [np.full_like(deep, 65535)] * (1 - count % 2)
    found = read_image(png_of_layers(np.stack(layers, 2)))
    np.testing.assert_array_equal(found, read_image(encoded(Image.fromarray(deep))))


def test_sixteen_bit_colour_becomes_luma_and_transparency_is_composed_over_black() -> None:
    layers = np.zeros((40, 40, 4), np.uint16)
    layers[..., 1] = 4095  # green
    layers[..., 3] = 65535
    layers[20:, :, 3] = 13107  # a fifth
    layers[30:, :20] = (4095, 4095, 4095, 65535)
    pixels = read_image(png_of_layers(layers))
    np.testing.assert_allclose(pixels[[0, 25, 35], 0], [0.587 * 255, 0.587 * 51, 255], atol=0.51)


@pytest.mark.parametrize("part", [0.4, 0.9])
def test_sixteen_bit_colour_cut_short_is_truncated(part: float) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (64, 64, 3))
    content = png_of_layers(deep)
    assert reason_of(content[: int(part * len(content))]) == RejectReason.TRUNCATED


def test_eight_bits_stored_in_sixteen_are_kept() -> None:
    np.testing.assert_array_equal(
        read_image(encoded(Image.fromarray(RAMP.astype(np.uint16)))), RAMP
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_turns_the_image_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the exposure is the right side of the stored image
    stored = Image.fromarray(np.rot90(RAMP))
    upright = read_image(encoded(stored, kind, exif=exif))
    np.testing.assert_allclose(upright.astype(int), RAMP, atol=4)


def test_digest_of_pixels_tells_shapes_and_types_apart() -> None:
    flat = np.zeros((32, 64), np.uint8)
    digests = {
        pixel_digest(flat),
        pixel_digest(flat.reshape(64, 32)),
        pixel_digest(flat.view(np.uint16)),
    }
    assert len(digests) == 3
    assert pixel_digest(flat[:, ::2]) == pixel_digest(np.zeros((32, 32), np.uint8))


def test_real_radiographs_are_read(shared_data: Path) -> None:
    folder = shared_data / "radiographs" / "images"
    assert read_image((folder / "00000001_000.png").read_bytes()).shape == (512, 512)
    child = next(iter(sorted(folder.glob("ker_*.jpg"))))
    assert read_image(child.read_bytes()).shape == (224, 224)


def test_the_first_picture_of_a_jpeg_with_a_preview_is_read() -> None:
    first = Image.fromarray(RAMP).convert("RGB")
    stream = io.BytesIO()
    preview = Image.new("RGB", (20, 20))
    first.save(stream, "MPO", save_all=True, append_images=[preview], quality=98)
    np.testing.assert_allclose(read_image(stream.getvalue()), RAMP, atol=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "RGB"])
def test_picture_of_layers_that_would_fill_memory_is_not_decoded(mode: str) -> None:
    stream = io.BytesIO()
    kind = "PNG" if mode.endswith("A") else "JPEG"
    Image.new(mode, (5000, 4001)).save(stream, kind, progressive=True)
    assert reason_of(stream.getvalue()) is RejectReason.IMPLAUSIBLE


def test_picture_of_more_parts_than_encoders_write_is_not_opened() -> None:
    png, jpeg = (encoded(Image.fromarray(RAMP), kind) for kind in ("PNG", "JPEG"))
    empty_chunk = b"\0\0\0\0teXt" + zlib.crc32(b"teXt").to_bytes(4)
    for content, place, part in ((png, 33, empty_chunk), (jpeg, 2, b"\xff\xe5\x00\x02")):
        read_image(content[:place] + part * 40_000 + content[place:])
        refused = content[:place] + part * 50_001 + content[place:]
        assert reason_of(refused) is RejectReason.TOO_LARGE


def test_jpeg_of_thousands_of_scans_is_not_decoded() -> None:
    content = encoded(Image.fromarray(RAMP), "JPEG", progressive=True)
    scan = content[content.rfind(b"\xff\xda") : -2]
    assert reason_of(content[:-2] + scan * 3000 + content[-2:]) is RejectReason.TOO_SLOW


def test_texts_beside_the_pixels_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "Doe^Jane"
    content = encoded(Image.fromarray(RAMP), "JPEG", exif=exif)
    with caplog.at_level(logging.DEBUG):
        read_image(content)
    assert "Doe" not in caplog.text
