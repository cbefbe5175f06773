"""PNG and JPEG files to 8-bit grey levels, and any image to the model's square.

Grey levels are kept as they are in an 8-bit file. Colour becomes luma (ITU-R BT.601), transparency
is composed over black, a palette is looked up. A 16-bit file is mapped linearly from the range of
its bit depth, because detectors have 10, 12 or 14 bits, and their images would be almost black if
16 were meant. A PNG may tell its depth (sBIT); of others it is the least of 8, 10, 12, 14 and 16
bits that holds every pixel, colour or not. The map depends on the depth alone, not on the darkest
and brightest pixel, so that exposures stay comparable.

Shrinking averages over the area a new pixel covers (OpenCV `INTER_AREA`), so that no fine line is
skipped; enlarging interpolates linearly. Both treat a pixel as a square, which is what makes the
`Geometry` record exact. Grey levels are mapped before, on the whole image (ADR 0005).
"""

import hashlib
import io
import logging
import re
import struct
import traceback
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from chexradinet.config import GeometryMode, PreprocessingConfig
from chexradinet.errors import ChexRadiNetError, ConfigError, RejectedImageError
from chexradinet.parallel import time_limit
from chexradinet.records import Geometry, RejectReason

logging.getLogger("PIL").setLevel(logging.INFO)  # it logs EXIF texts when it debugs

_log = logging.getLogger(__name__)

DECODE_TIMEOUT_S = 60.0
"""Most seconds that the decoding of one file may take."""
MIN_SIDE_PX = 32
"""Shortest side that an X-ray can have and still show anything."""
MAX_PIXELS = 64_000_000
"""Most pixels of an image; the largest detectors have 18 million."""
_MAX_LAYERED_PIXELS = 20_000_000
"""Most pixels of a picture that is decoded into several layers (transparency, CMYK, 16-bit colour,
colour in several passes): up to 20 bytes per pixel, so at most 512 MiB with the file itself."""
_MAX_BYTES = 96 << 20
"""Largest picture file; 16-bit grey levels of all of `MAX_PIXELS` fill 128 MB uncompressed."""
_MAX_PARTS = 50_000
"""Most chunks of a PNG or segments of a JPEG, of which Pillow keeps each; libpng writes one for
8 KiB."""
_MAX_SCANS = 256
"""Most passes of a progressive JPEG over its pixels; encoders make about ten."""

_PASS = re.compile(rb"\xff\xda\x00[\x08\x0a][\x01\x02]")
"""Head of a pass over some colours alone: then libjpeg keeps all coefficients until the last."""
_SEGMENT = re.compile(rb"\xff[\xe0-\xef\xfe]")
"""Head of a segment that is not for decoding; coded pixels hold none."""
_FORMATS = ("PNG", "JPEG")
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {_PNG: b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}
_READER_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError, cv2.error, struct.error),
)
"""Faults of a reader that no file should cause."""
_BROKEN = (
    *_READER_FAULTS,
    *(EOFError, MemoryError, NotImplementedError, OSError, SyntaxError, zlib.error),
)
"""What Pillow and OpenCV raise on files that are damaged or made up; found by mutating them."""
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_SIXTEEN_BIT_LAYERS = ((16, 2), (16, 4), (16, 6))
"""Bit depth and colour type of a PNG with colour or transparency of which Pillow keeps 8 bits."""
_RESIZABLE = (np.uint8, np.uint16, np.int16)
_DEPTHS = (8, 10, 12, 14, 16)
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(content: bytes) -> NDArray[np.uint8]:
    """Return the image of a PNG or JPEG file as shape (H, W), upright by its EXIF orientation.

    Raises:
        RejectedImageError: not such an image, broken, or blank; the reason is one of `unreadable`,
            `truncated`, `not_an_image`, `multi_frame`, `implausible`, `too_large`, `too_slow`,
            `too_small` and `constant`.
    """
    if len(content) > _MAX_BYTES:
        detail = f"{len(content)} bytes; a picture has at most {_MAX_BYTES}"
        raise RejectedImageError(RejectReason.TOO_LARGE, detail)
    if _num_parts(content) > _MAX_PARTS:
        detail = f"more than {_MAX_PARTS} chunks or segments"
        raise RejectedImageError(RejectReason.TOO_LARGE, detail)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_head(image, content)
                pixels = _upright(_grey(image, content), image)
        except _TOO_LARGE as error:
            raise _too_large("over 89 million", MAX_PIXELS) from error
        except _BROKEN as error:
            raise _broken(content, error) from error
    check_pixels(pixels)
    return pixels


def check_pixels(pixels: NDArray[np.integer], min_side_px: int = MIN_SIDE_PX) -> None:
    """Refuse an image that is too small to show anything, or that shows nothing.

    Raises:
        RejectedImageError: `too_small` or `constant`.
    """
    if min(pixels.shape) < min_side_px:
        detail = (
            f"{pixels.shape[0]}x{pixels.shape[1]} px; both sides must be at least {min_side_px}"
        )
        raise RejectedImageError(RejectReason.TOO_SMALL, detail)
    if pixels.min() == pixels.max():
        raise RejectedImageError(RejectReason.CONSTANT, f"every pixel is {pixels.flat[0]}")


def pixel_digest(pixels: NDArray[np.integer]) -> str:
    """Return the SHA-256 of decoded pixels with their type and shape, in hex."""
    head = f"{pixels.dtype.str}{pixels.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _num_parts(content: bytes) -> int:
    """Count chunks of a PNG or segments of a JPEG, up to one too many."""
    if not content.startswith(_PNG):
        return sum(1 for _ in islice(_SEGMENT.finditer(content), _MAX_PARTS + 1))
    position, found = len(_PNG), 0
    while position < len(content) and found <= _MAX_PARTS:
        position += 12 + int.from_bytes(content[position : position + 4])
        found += 1
    return found


def _check_head(image: Image.Image, content: bytes) -> None:
    layered = image.mode == "CMYK" or image.has_transparency_data or _has_wide_layers(content)
    layered = layered or (image.mode == "RGB" and bool(_PASS.search(content)))
    most = _MAX_LAYERED_PIXELS if layered else MAX_PIXELS
    if image.width * image.height > most:
        raise _too_large(f"{image.height}x{image.width}", most)
    scans = 0 if content.startswith(_PNG) else content.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        detail = f"a JPEG of {scans} scans; at most {_MAX_SCANS} are read"
        raise RejectedImageError(RejectReason.TOO_SLOW, detail)
    frames = getattr(image, "n_frames", 1)
    # Pictures behind the first of a JPEG are previews, which other readers do not show either.
    if frames != 1 and image.format != "MPO":
        raise RejectedImageError(
            RejectReason.MULTI_FRAME, f"{frames} frames; only single-frame images are read"
        )


def _upright(pixels: NDArray[np.uint8], image: Image.Image) -> NDArray[np.uint8]:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    method = _TRANSPOSED.get(orientation)
    return pixels if method is None else np.asarray(Image.fromarray(pixels).transpose(method))


def _grey(image: Image.Image, content: bytes) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return _eight_bits(np.asarray(image), _significant_bits(content))
    if _has_wide_layers(content):
        image.load()  # which finds damage that OpenCV passes over
        return _grey_of_layers(content)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        luma = np.asarray(layers.convert("RGB").convert("L"))
        return _over_black(luma, np.asarray(layers.getchannel("A")))
    if image.mode == "P":
        image = image.convert("RGB")
    return np.asarray(image.convert("L"))


def _has_wide_layers(content: bytes) -> bool:
    return content.startswith(_PNG) and (content[24], content[25]) in _SIXTEEN_BIT_LAYERS


def _grey_of_layers(content: bytes) -> NDArray[np.uint8]:
    layers = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if layers is None or layers.dtype != np.uint16 or layers.ndim != 3:
        raise ValueError("no 16-bit layers")
    luma = np.asarray(cv2.cvtColor(layers[..., :3], cv2.COLOR_BGR2GRAY), dtype=np.uint16)
    grey = _eight_bits(luma, _significant_bits(content))
    if layers.shape[2] == 3:
        return grey
    alpha = np.asarray(layers[..., 3], dtype=np.uint16)
    return _over_black(grey, _eight_bits(alpha, None))


def _over_black(luma: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ((luma.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)


def _significant_bits(content: bytes) -> int | None:
    """Return what the sBIT chunk of a PNG says of its first channel, if there is a valid one."""
    position = 8
    while content.startswith(_PNG) and position + 9 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        if name == b"sBIT" and length:
            bits = content[position + 8]
            return bits if 1 <= bits <= 16 else None
        if name == b"IDAT":
            break
        position += 12 + length
    return None


def _eight_bits(pixels: NDArray[np.integer], significant_bits: int | None) -> NDArray[np.uint8]:
    """Map 16-bit grey levels to 8 bits.

    The PNG specification wants fewer significant bits spread over the whole range, and then the
    range is 16 bits; many writers store them as they are, and then no pixel is above them.
    """
    highest = int(pixels.max())
    depths = _DEPTHS if significant_bits is None else (significant_bits, 16)
    depth = next(bits for bits in depths if highest < 1 << bits)
    largest = (1 << depth) - 1
    levels = (np.arange(largest + 1, dtype=np.uint32) * 255 + largest // 2) // largest
    return np.asarray(levels.astype(np.uint8)[pixels])


def _too_large(size: str, most: int) -> RejectedImageError:
    detail = f"{size} px; at most {most // 1_000_000} million of this kind are read"
    return RejectedImageError(RejectReason.IMPLAUSIBLE, detail)


def _broken(content: bytes, error: Exception) -> RejectedImageError:
    """Tell a file cut short (no end marker) from one damaged inside, and from another kind."""
    end = next((end for head, end in _SIGNATURES.items() if content.startswith(head)), None)
    if _is_memory_error(error):
        return _out_of_memory()
    if not content:
        return RejectedImageError(RejectReason.TRUNCATED, "the file is empty")
    if end is None:
        return RejectedImageError(RejectReason.NOT_AN_IMAGE, "neither PNG nor JPEG")
    if end not in content[-64:] or "truncated" in str(error):
        return RejectedImageError(RejectReason.TRUNCATED, "the file ends before its pixels do")
    return RejectedImageError(RejectReason.UNREADABLE, f"damaged: {type(error).__name__}")


def fit_to_model(
    pixels: NDArray[np.integer], config: PreprocessingConfig
) -> tuple[NDArray[np.integer], Geometry]:
    """Return the image as the model sees its shape, and the map back to the original.

    Args:
        pixels: Original image of shape (H, W), any integer type.
        config: Side S and mode. `squash` scales each axis on its own. `pad` scales both alike and
            centres the image between bars of 0; the short side is rounded to whole pixels, so the
            two scales may differ by less than half a model pixel over the image.

    Returns:
        Image of shape (S, S) and of the type given, and its geometry without spacing.

    Raises:
        ConfigError: the image is not two-dimensional, empty or not of integers.
    """
    integers = np.issubdtype(pixels.dtype, np.integer)
    if pixels.ndim != 2 or 0 in pixels.shape or not integers:
        raise ConfigError(
            f"image is {pixels.dtype} of shape {pixels.shape}; it must be integers of shape (H, W)"
        )
    height, width = pixels.shape
    side = config.image_side
    new_height, new_width = side, side
    if config.geometry is GeometryMode.PAD:
        longest = max(height, width)
        new_height = max(1, round(height * side / longest))
        new_width = max(1, round(width * side / longest))
    fitted = _resized(pixels, new_height, new_width)
    top, left = (side - new_height) // 2, (side - new_width) // 2
    if (new_height, new_width) != (side, side):
        content = fitted
        fitted = np.zeros((side, side), dtype=pixels.dtype)
        fitted[top : top + new_height, left : left + new_width] = content
    row_scale, column_scale = height / new_height, width / new_width
    return fitted, Geometry(
        original_height=height,
        original_width=width,
        row_scale=row_scale,
        column_scale=column_scale,
        row_offset=-top * row_scale,
        column_offset=-left * column_scale,
    )


def _resized(pixels: NDArray[np.integer], height: int, width: int) -> NDArray[np.integer]:
    if pixels.shape == (height, width):
        return pixels
    if pixels.dtype not in _RESIZABLE:
        # OpenCV has no area average for other integers; doubles hold all 32-bit values exactly.
        wide = _shrunk_then_grown(pixels.astype(np.float64), height, width)
        return np.asarray(np.rint(wide), dtype=pixels.dtype)
    return _shrunk_then_grown(pixels, height, width)


def _shrunk_then_grown(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    # One axis may shrink while the other grows; OpenCV would then not average the shrinking one.
    smaller = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if smaller != (pixels.shape[1], pixels.shape[0]):
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if pixels.shape != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return pixels


def _is_memory_error(error: Exception) -> bool:
    """Tell whether Python or OpenCV had no memory left."""
    of_opencv = isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem
    return of_opencv or isinstance(error, MemoryError)


def _out_of_memory() -> RejectedImageError:
    """Return the rejection of a file that takes more memory than it may."""
    detail = "decoding it takes more memory than a process may use"
    return RejectedImageError(RejectReason.TOO_LARGE, detail)


@contextmanager
def reject_on_error(timeout_s: float = DECODE_TIMEOUT_S) -> Iterator[None]:
    """Turn an unexpected fault of the block into a rejection; the log asks to report it.

    Args:
        timeout_s: Most seconds that the block may take in a worker process.

    Raises:
        RejectedImageError: it says where the fault is, and nothing of the file.
    """
    try:
        with time_limit(timeout_s):
            yield
    except ChexRadiNetError:
        raise
    except MemoryError:
        raise _out_of_memory() from None
    except _READER_FAULTS as error:
        if _is_memory_error(error):
            raise _out_of_memory() from None
        # The text of such an error may quote the file, its type and place cannot.
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} at line {place.lineno} of {Path(place.filename).name}"
        _log.warning("a fault of the reader, please report it: %s", fault)
        raise RejectedImageError(
            RejectReason.UNREADABLE, f"a fault of the reader: {fault}"
        ) from None
