"""Radiomics of every cell of a heatmap's grid: what a network is pre-trained to predict.

First-order, GLCM, gradient and LBP features of a window around each cell, two cells wide, and a few
of the cell itself. Definitions are pyradiomics' where it has them (a test holds them to it): the
full window is the mask, in two dimensions, bins are 8 grey levels wide, GLCMs are symmetrical, and
their features means over all directions, 4 between neighbours and 12 at a distance of three. LBP is
simpler than pyradiomics': how many of a pixel's eight neighbours are brighter. Borders of the image
are repeated.

GLCM features are means over pairs of pixels, so no matrix is built; sums over windows are products
with a band matrix on either side.

Source: van Griethuysen et al. 2017, Cancer Research 77(21), e104-e107; pyradiomics 3.0.1.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import require

BIN_WIDTH = 8
"""Grey levels of the 8-bit range in a bin."""

_EPS = float(np.spacing(1.0))
_HOG_EPS = 1e-6

NUM_ORIENTATIONS = 9
"""Orientations of `local_hog`."""

LOCAL_FEATURES = (
    "firstorder_Mean",
    "firstorder_Variance",
    "firstorder_Skewness",
    "firstorder_Kurtosis",
    "firstorder_Minimum",
    "firstorder_Maximum",
    "firstorder_Entropy",
    "firstorder_Uniformity",
    "glcm_Contrast",
    "glcm_Idm",
    "glcm_Correlation",
    "glcm_ClusterShade",
    "glcm_ClusterProminence",
    "glcm3_Contrast",
    "glcm3_Idm",
    "glcm3_Correlation",
    "gradient_Mean",
    "gradient_Variance",
    "lbp_Mean",
    "lbp_Variance",
    "cell_firstorder_Mean",
    "cell_firstorder_Variance",
    "cell_glcm_Contrast",
)
"""Features in stored order; `glcm3` pairs pixels three apart, `cell` is one cell without margin."""

Measure = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]
"""Gives the features of each cell of an image, for a stride."""
Maps = NDArray[np.floating]
"""Values by pixel, (H, W), or by cell, (h, w)."""


def local_radiomics(image: NDArray[np.uint8], stride: int) -> NDArray[np.float32]:
    """Return the features of each cell, shape (23, H / stride, W / stride), all finite.

    Args:
        image: Grey levels, shape (H, W); sides are multiples of `stride`.
        stride: Pixels of a cell's side, even.

    Raises:
        ConfigError: the grid does not fit the image.
    """
    fits = (
        stride >= 8 and stride % 2 == 0 and not (image.shape[0] % stride or image.shape[1] % stride)
    )
    require(fits, "stride", stride, f"even, at least 8, and a divisor of the sides {image.shape}")
    margin = stride // 2
    padded = np.pad(image, margin, mode="edge")
    grid = _Grid(image.shape[0], image.shape[1], stride)
    # Differences of bins are those of pyradiomics, which counts bins from each window's lowest.
    bins = (padded // BIN_WIDTH).astype(np.float64)
    features = {
        **_first_order(padded, stride),
        **_glcm("glcm", bins, grid, distance=1, clusters=True),
        # Sums of small whole numbers: exact in float32 too.
        **_glcm("glcm3", bins.astype(np.float32), grid, distance=3),
        **_moments("gradient", _gradient(padded), grid),
        **_moments("lbp", _brighter_neighbours(padded), grid),
        **_of_cells(image, stride),
    }
    return np.stack([features[name] for name in LOCAL_FEATURES]).astype(np.float32)


class _Grid:
    """Windows of two cells, one around each cell."""

    def __init__(self, height: int, width: int, stride: int) -> None:
        self.height, self.width, self.stride = height, width, stride

    def mean(self, values: Maps, rows: int = 0, columns: int = 0) -> Maps:
        """Return means over each window, cut by some rows and columns at its end; (..., h, w)."""
        side = 2 * self.stride
        left = _band(self.height, self.stride, side - rows)[:, : values.shape[-2]]
        right = _band(self.width, self.stride, side - columns)[:, : values.shape[-1]]
        sums = left.astype(values.dtype) @ (values @ right.T.astype(values.dtype))
        return np.divide(sums, (side - rows) * (side - columns), dtype=np.float64)


@cache
def _band(length: int, stride: int, window: int) -> Maps:
    """Return ones where a padded axis's pixel lies in a cell's window, (cells, length + stride)."""
    offset = np.arange(length + stride) - stride * np.arange(length // stride)[:, None]
    return ((offset >= 0) & (offset < window)).astype(np.float64)


def _first_order(padded: NDArray[np.uint8], stride: int) -> dict[str, Maps]:
    side = 2 * stride
    views = np.lib.stride_tricks.sliding_window_view(padded, (side, side))[::stride, ::stride]
    windows = views.reshape(*views.shape[:2], side * side)
    levels = windows.astype(np.float32)
    mean = levels.mean(-1, dtype=np.float64)
    deviations = levels - mean[..., None].astype(np.float32)
    squares = deviations * deviations
    size = side * side
    second = np.einsum("hwp->hw", squares, dtype=np.float64) / size
    third = np.einsum("hwp,hwp->hw", squares, deviations, dtype=np.float64) / size
    fourth = np.einsum("hwp,hwp->hw", squares, squares, dtype=np.float64) / size
    flat = second == 0
    spread = np.where(flat, 1.0, second)
    share = _histogram(windows // BIN_WIDTH) / size
    return {
        "firstorder_Mean": mean,
        "firstorder_Variance": second,
        "firstorder_Skewness": np.where(flat, 0.0, third / spread**1.5),
        "firstorder_Kurtosis": np.where(flat, 0.0, fourth / spread**2),
        "firstorder_Minimum": windows.min(-1).astype(np.float64),
        "firstorder_Maximum": windows.max(-1).astype(np.float64),
        "firstorder_Entropy": -(share * np.log2(share + _EPS)).sum(-1),
        "firstorder_Uniformity": (share * share).sum(-1),
    }


def _histogram(bins: NDArray[np.uint8]) -> Maps:
    """Return how often each bin is in each window, (h, w, 32)."""
    number = 256 // BIN_WIDTH
    shape = bins.shape[:2]
    flat = bins.reshape(-1, bins.shape[-1]).astype(np.intp)
    flat += number * np.arange(len(flat))[:, None]
    counts = np.bincount(flat.ravel(), minlength=number * len(flat))
    return counts.reshape(*shape, number).astype(np.float64)


def _glcm(
    name: str, bins: Maps, grid: _Grid, *, distance: int, clusters: bool = False
) -> dict[str, Maps]:
    """Return the means over all directions; a pair counts if both its pixels are in the window."""
    offsets = [
        (down, right)
        for down in range(distance + 1)
        for right in range(-distance, distance + 1)
        if max(down, abs(right)) == distance and (down or right > 0)
    ]
    angles = [_pairs(bins, grid, down, right, clusters) for down, right in offsets]
    names = ("Contrast", "Idm", "Correlation", "ClusterShade", "ClusterProminence")
    means = [np.mean(values, axis=0) for values in zip(*angles, strict=True)]
    return {f"{name}_{feature}": mean for feature, mean in zip(names, means, strict=False)}


def _pairs(bins: Maps, grid: _Grid, down: int, right: int, clusters: bool) -> list[Maps]:
    """Return the features of one angle: means over its pairs, each counted both ways round."""
    across = abs(right)
    height, width = bins.shape[0] - down, bins.shape[1] - across
    one = bins[:height, across:] if right < 0 else bins[:height, :width]
    other = bins[down:, :width] if right < 0 else bins[down:, across:]
    squared = (one - other) ** 2
    total = one + other
    maps = [squared, 1 / (1 + squared), total, total * total]
    if clusters:
        maps += [maps[3] * total, maps[3] * maps[3]]
    contrast, idm, m1, m2, *higher = grid.mean(np.stack(maps), down, across)
    # With s = i + j and d = i - j: var(i) = (var(s) + E[d^2]) / 4 and cov(i, j) = its difference.
    tendency = m2 - m1 * m1
    variance, covariance = (tendency + contrast) / 4, (tendency - contrast) / 4
    flat = variance < 1e-9
    correlation = np.where(flat, 1.0, covariance / np.where(flat, 1.0, variance))
    found = [contrast, idm, correlation]
    if clusters:
        m3, m4 = higher
        found.append(m3 - 3 * m1 * m2 + 2 * m1**3)
        found.append(m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4)
    return found


def _moments(name: str, values: Maps, grid: _Grid) -> dict[str, Maps]:
    mean, squared = grid.mean(np.stack([values, values * values]))
    return {f"{name}_Mean": mean, f"{name}_Variance": np.maximum(squared - mean * mean, 0.0)}


def _gradient(padded: NDArray[np.uint8]) -> Maps:
    """Return the magnitude of central differences, as SimpleITK's filter with repeated borders."""
    wide = np.pad(padded, 1, mode="edge").astype(np.float64)
    down = wide[2:, 1:-1] - wide[:-2, 1:-1]
    right = wide[1:-1, 2:] - wide[1:-1, :-2]
    return np.asarray(np.sqrt(down * down + right * right) / 2)


def _brighter_neighbours(padded: NDArray[np.uint8]) -> Maps:
    wide = np.pad(padded, 1, mode="edge")
    height, width = padded.shape
    found = np.zeros(padded.shape, np.uint8)
    for down in range(3):
        for right in range(3):
            found += wide[down : down + height, right : right + width] > padded
    return found.astype(np.float64)


def _of_cells(image: NDArray[np.uint8], stride: int) -> dict[str, Maps]:
    height, width = image.shape[0] // stride, image.shape[1] // stride
    cells = image.reshape(height, stride, width, stride).swapaxes(1, 2).astype(np.float32)
    mean = cells.mean((2, 3), dtype=np.float64)
    deviations = cells - mean[..., None, None].astype(np.float32)
    variance = np.einsum("hwij,hwij->hw", deviations, deviations, dtype=np.float64) / stride**2
    bins = cells // BIN_WIDTH
    pairs = (
        bins[..., 1:] - bins[..., :-1],
        bins[..., 1:, :] - bins[..., :-1, :],
        bins[..., 1:, 1:] - bins[..., :-1, :-1],
        bins[..., 1:, :-1] - bins[..., :-1, 1:],
    )
    contrast = sum((step * step).mean((2, 3), dtype=np.float64) for step in pairs) / len(pairs)
    return {
        "cell_firstorder_Mean": mean,
        "cell_firstorder_Variance": variance,
        "cell_glcm_Contrast": np.asarray(contrast),
    }


def local_hog(image: NDArray[np.uint8], stride: int) -> NDArray[np.float32]:
    """Return the share of each orientation in each cell, shape (9, H / stride, W / stride).

    Histograms of oriented gradients: the pretext that radiomics have to beat.

    Args:
        image: Grey levels, shape (H, W); sides are multiples of `stride`.
        stride: Pixels of a cell's side.

    Source: Dalal and Triggs 2005; as a pretext, Wei et al. 2022, arXiv:2112.09133.
    """
    height, width = image.shape[0] // stride, image.shape[1] // stride
    down, right = np.gradient(image.astype(np.float32))
    angle = np.arctan2(down, right) % np.pi
    orientation = np.minimum(
        (angle / np.pi * NUM_ORIENTATIONS).astype(np.intp), NUM_ORIENTATIONS - 1
    )
    cell = np.arange(height).repeat(stride)[:, None] * width + np.arange(width).repeat(stride)
    place = orientation * (height * width) + cell
    found = np.bincount(
        place.ravel(), np.hypot(down, right).ravel(), NUM_ORIENTATIONS * height * width
    ).reshape(NUM_ORIENTATIONS, height, width)
    scaled: NDArray[np.float32] = (found / (np.linalg.norm(found, axis=0) + _HOG_EPS)).astype(
        np.float32
    )
    return scaled


def measured(measure: Measure, stride: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a measure gives for several images; worker processes call it."""
    return np.stack([measure(image, stride) for image in images])
