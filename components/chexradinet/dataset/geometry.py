"""From an image of any shape to the model's square, with the exact way back.

Shrinking averages over the area a new pixel covers (OpenCV `INTER_AREA`), so that no fine line is
skipped; enlarging interpolates linearly. Both treat a pixel as a square, which is what makes the
`Geometry` record exact. Integers stay integers: resizing them before any grey-level map is what
makes reading fast, and a linear map commutes with it.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexradinet.config import GeometryMode, PreprocessingConfig
from chexradinet.errors import ConfigError
from chexradinet.records import Geometry

_RESIZABLE = (np.uint8, np.uint16, np.int16)


def fit_to_model(
    pixels: NDArray[np.integer], config: PreprocessingConfig, *, bar_value: int = 0
) -> tuple[NDArray[np.integer], Geometry]:
    """Return the image as the model sees its shape, and the map back to the original.

    Args:
        pixels: Original image of shape (H, W), any integer type.
        config: Side S and mode. `squash` scales each axis on its own. `pad` scales both alike and
            centres the image between bars; the short side is rounded to whole pixels, so the two
            scales may differ by less than half a model pixel over the image.
        bar_value: Grey level of the bars of `pad`: the level that stands for black.

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
        fitted = np.full((side, side), bar_value, dtype=pixels.dtype)
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
