"""A radiograph with what the model looked at: heatmap, region and the true box if any.

Deterministic: equal inputs give equal bytes, so a rerun of scoring writes the same files.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.errors import EvaluationError
from chexradinet.evaluation.classification import Array
from chexradinet.records import Box

REGION_COLOR = (255, 176, 0)
"""Amber, RGB: the region of the model."""
TRUTH_COLOR = (100, 210, 255)
"""Sky blue, RGB: the reader's box, dashed. The pair differs for every kind of colour vision."""
_MAX_ALPHA = 0.55
_ALPHA_POWER = 1.5
_DASH = 4
_STRIP_ROWS = 64


def overlay(
    image: npt.NDArray[np.uint8],
    heatmap: Array | None,
    region: Box | None = None,
    true_boxes: Sequence[Box] = (),
    min_side_px: int = 0,
) -> npt.NDArray[np.uint8]:
    """Draw heatmap and boxes over a radiograph.

    Args:
        image: Grey values, shape (H, W).
        heatmap: Any resolution, shape (h, w); its positive part, over its maximum, sets how
            strongly the colour covers. None, or a map without positive evidence, draws nothing.
        region: The model's box in pixels of the image, drawn with a solid line.
        true_boxes: The reader's boxes in pixels of the image, drawn dashed.
        min_side_px: Enlarge until the shorter side has at least this many pixels.

    Returns:
        RGB, shape (H', W', 3); the aspect ratio is kept.

    Raises:
        EvaluationError: the image is not 8-bit grey, or the heatmap is not a matrix.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise EvaluationError(
            f"image has shape {image.shape} and type {image.dtype}; give one 8-bit grey radiograph"
        )
    factor = max(1.0, min_side_px / min(image.shape))
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if factor > 1 else image
    grey = np.asarray(enlarged, dtype=np.uint8)
    strength = None if heatmap is None else evidence(heatmap, size[1], size[0])
    plain = np.asarray(cv2.merge([grey] * 3), dtype=np.uint8)
    canvas = plain if strength is None else _blend(grey, strength)
    thickness = max(1, round(min(size) / 160))
    for box in true_boxes:
        _draw_dashed(canvas, box, factor, thickness)
    if region is not None:
        corners = _corners(region, factor, canvas.shape)
        cv2.rectangle(canvas, corners[0], corners[1], REGION_COLOR, thickness)
    return np.ascontiguousarray(canvas, dtype=np.uint8)


def evidence(heatmap: Array, height: int, width: int) -> npt.NDArray[np.float32]:
    """Return the positive part of a map over its maximum, enlarged to (height, width), in [0, 1].

    All zero if the map has no finite positive value.

    Raises:
        EvaluationError: the heatmap is not a matrix.
    """
    if heatmap.ndim != 2 or not heatmap.size:
        raise EvaluationError(f"heatmap has shape {heatmap.shape}; give one map of shape (h, w)")
    positive = np.nan_to_num(np.asarray(heatmap, dtype=np.float32), nan=0, posinf=0, neginf=0)
    positive = np.maximum(positive, 0)
    highest = float(positive.max())
    if highest <= 0:
        return np.zeros((height, width), dtype=np.float32)
    enlarged = cv2.resize(positive / highest, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.asarray(enlarged, dtype=np.float32), 0, 1)


def png_bytes(image: npt.NDArray[np.uint8], compression: int = 6) -> bytes:
    """Return the PNG file of a grey (H, W) or RGB (H, W, 3) image.

    Args:
        image: Grey values or colours.
        compression: From 0, fast, to 9, small.

    Raises:
        EvaluationError: the image is of neither form.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise EvaluationError(f"image is {image.dtype} {image.shape}; give 8-bit grey or RGB")
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    return bytes(encoded.tobytes())


def _blend(grey: npt.NDArray[np.uint8], strength: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Cover grey values with colour, strip by strip: what is computed on stays in the cache."""
    inferno = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO)
    tables = cv2.split(np.asarray(inferno[:, :, ::-1], dtype=np.float32))
    planes = [np.empty(grey.shape, np.uint8) for _ in tables]
    for first in range(0, len(grey), _STRIP_ROWS):
        rows = slice(first, first + _STRIP_ROWS)
        levels = np.rint(strength[rows] * 255).astype(np.uint8)
        alpha = _MAX_ALPHA * strength[rows] ** _ALPHA_POWER
        kept = grey[rows] * (1 - alpha)
        for plane, table in zip(planes, tables, strict=True):
            plane[rows] = np.rint(cv2.LUT(levels, table) * alpha + kept)
    return np.asarray(cv2.merge(planes), dtype=np.uint8)


def _corners(
    box: Box, factor: float, shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the outermost pixels of a half-open box, inside the canvas, as (column, row)."""
    rows = np.clip([round(box.top * factor), round(box.bottom * factor) - 1], 0, shape[0] - 1)
    columns = np.clip([round(box.left * factor), round(box.right * factor) - 1], 0, shape[1] - 1)
    return (int(columns[0]), int(rows[0])), (int(columns[1]), int(rows[1]))


def _draw_dashed(canvas: npt.NDArray[np.uint8], box: Box, factor: float, thickness: int) -> None:
    (left, top), (right, bottom) = _corners(box, factor, canvas.shape)
    dash = _DASH * thickness
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash - 1, right)
        for row in (top, bottom):
            cv2.line(canvas, (start, row), (end, row), TRUTH_COLOR, thickness)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash - 1, bottom)
        for column in (left, right):
            cv2.line(canvas, (column, start), (column, end), TRUTH_COLOR, thickness)
