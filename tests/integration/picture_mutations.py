"""Read damaged PNG and JPEG files: `python -m tests.integration.picture_mutations SEED COUNT`.

NIH ChestX-ray14, CheXpert and MIMIC-CXR-JPG come in these. Half of the PNG files get right check
sums again, so that what was changed reaches the decoder.
"""

import io
import struct
import sys
import warnings
import zlib
from functools import partial

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from chexradinet.config import PreprocessingConfig
from chexradinet.dataset.images import fit_to_model, read_image
from chexradinet.errors import RejectedImageError
from tests.integration.mutations import read_cases, with_changed_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_REGIONS = ((8, 120), (8, 400), (0, 1 << 40))
_ODD_CHUNKS = (b"sBIT\x0c", b"tRNS\x00\x07", b"PLTE", b"acTL\0\0\0\2\0\0\0\0", b"eXIfMM\0*")


def written_files() -> list[bytes]:
    """Return small files of every mode that the readers tell apart."""
    row, column = np.mgrid[0:47, 0:39]
    grey = (128 + 100 * np.sin(column / 9) * np.cos(row / 7)).astype(np.uint8)
    plain = Image.fromarray(grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 16)
    layers = np.stack([grey, 255 - grey, grey // 2, grey], axis=-1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("key", "v" * 50, zip=True)
    texts.add_text("key", "v" * 90, zip=True)
    pngs: list[tuple[Image.Image, dict[str, object]]] = [
        (plain, {}),
        (plain, {"pnginfo": texts, "exif": exif}),
        (plain, {"transparency": 7}),
        (
            plain,
            {"save_all": True, "append_images": [plain.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]},
        ),
        (plain.convert("P"), {}),
        (plain.convert("P"), {"transparency": b"\0\x80\xff"}),
        (plain.convert("1"), {}),
        (deep, {}),
        (Image.fromarray(layers), {}),
        (Image.fromarray(layers[..., :3].copy()), {}),
    ]
    jpegs: list[tuple[Image.Image, dict[str, object]]] = [
        (plain, {"exif": exif}),
        (plain, {"progressive": True}),
        (plain, {"icc_profile": b"x" * 200}),
        (Image.fromarray(layers[..., :3].copy()), {}),
        (Image.fromarray(layers, "CMYK"), {}),
    ]
    files = [_encoded(image, "PNG", options) for image, options in pngs]
    for count in (3, 4):
        files.append(cv2.imencode(".png", layers[..., :count].astype(np.uint16) * 16)[1].tobytes())
    return files + [_encoded(image, "JPEG", options) for image, options in jpegs]


def _encoded(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def mutated(files: list[bytes], random: np.random.Generator) -> bytes:
    """Return one of the files with bytes changed, or with a chunk lost, moved or made up."""
    content = files[int(random.integers(len(files)))]
    if not content.startswith(_PNG):
        return with_changed_bytes(content, random, _REGIONS)
    if random.random() < 0.4:
        return _with_other_chunks(content, random)
    content = with_changed_bytes(content, random, _REGIONS)
    return _joined(_chunks(content)) if random.random() < 0.5 else content


def _with_other_chunks(content: bytes, random: np.random.Generator) -> bytes:
    chunks = _chunks(content)
    place = int(random.integers(len(chunks)))
    kind = int(random.integers(3))
    if kind == 0:
        del chunks[place]
    elif kind == 1:
        chunks.insert(int(random.integers(len(chunks))), chunks.pop(place))
    else:
        chunks.insert(place, _ODD_CHUNKS[int(random.integers(len(_ODD_CHUNKS)))])
    return _joined(chunks)


def _chunks(content: bytes) -> list[bytes]:
    """Return names and bodies of a PNG file's chunks, as far as their lengths make sense."""
    chunks, position = [], len(_PNG)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        chunks.append(content[position + 4 : position + 8 + length])
        position += 12 + length
    return chunks


def _joined(chunks: list[bytes]) -> bytes:
    framed = [
        struct.pack(">I", max(len(c) - 4, 0)) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    ]
    return _PNG + b"".join(framed)


def outcome(content: bytes) -> str:
    """Read one file as ingest does and return what became of it."""
    try:
        pixels = read_image(content)
        fit_to_model(pixels, PreprocessingConfig(image_side=32))
    except RejectedImageError as error:
        return str(error.reason)
    return "read"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    read_cases(int(sys.argv[1]), int(sys.argv[2]), partial(mutated, written_files()), outcome)
