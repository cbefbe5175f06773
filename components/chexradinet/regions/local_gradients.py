"""Histograms of oriented gradients of every cell: the pretext that radiomics have to beat.

Source: Dalal and Triggs 2005; as a pretext, Wei et al. 2022, arXiv:2112.09133.
"""

import numpy as np
from numpy.typing import NDArray

NUM_ORIENTATIONS = 9
_EPS = 1e-6


def local_hog(image: NDArray[np.uint8], stride: int) -> NDArray[np.float32]:
    """Return the share of each orientation in each cell, shape (9, H / stride, W / stride).

    Args:
        image: Grey levels, shape (H, W); sides are multiples of `stride`.
        stride: Pixels of a cell's side.
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
    scaled: NDArray[np.float32] = (found / (np.linalg.norm(found, axis=0) + _EPS)).astype(
        np.float32
    )
    return scaled
