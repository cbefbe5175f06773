"""Order and augmentation of training images, each a pure function of seed, epoch and step.

Nothing here knows of guidance, so every arm sees equal images in equal order; and nothing keeps a
state, so an interrupted run goes on with what it would have seen.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexradinet.config import TrainConfig
from chexradinet.model.resnet import normalise

_ORDER, _AUGMENTATION, _PERMUTATION = range(3)


def num_batches(num_images: int, batch_size: int) -> int:
    """Return the steps of an epoch."""
    return math.ceil(num_images / batch_size)


def epoch_batches(
    rows: NDArray[np.int64], config: TrainConfig, epoch: int
) -> list[NDArray[np.int64]]:
    """Return the rows of an epoch's batches: each row once, sizes equal up to one."""
    order = np.random.default_rng((config.seed, _ORDER, epoch)).permutation(rows)
    return np.array_split(order, num_batches(len(rows), config.batch_size))


def permuted(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return the features of all regions in another order: the control without information."""
    order = np.random.default_rng((seed, _PERMUTATION)).permutation(len(features))
    return features[order]


def augment(images: Tensor, config: TrainConfig, step: int) -> Tensor:
    """Return network input with changed place, contrast and brightness, on the images' device.

    Args:
        images: uint8, shape (B, H, W).
        config: Largest changes, and the seed.
        step: Of the whole training, from 0.

    Returns:
        float32, shape (B, 1, H, W); where the shift leaves a margin, the border is repeated.
    """
    generator = np.random.default_rng((config.seed, _AUGMENTATION, step))
    size = (len(images), 1, 1, 1)
    height, width = images.shape[1:]
    rows = _shifted(height, generator, config.max_shift_fraction, len(images))
    columns = _shifted(width, generator, config.max_shift_fraction, len(images))
    contrast = 1 + config.max_contrast_change * generator.uniform(-1, 1, size)
    brightness = config.max_brightness_change * generator.uniform(-1, 1, size)

    def placed(values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(images.device)

    image = placed(np.arange(len(images)))[:, None, None]
    shifted = images[image, placed(rows)[:, :, None], placed(columns)[:, None, :]]
    scaled = normalise(shifted) * placed(contrast.astype(np.float32))
    return scaled + placed(brightness.astype(np.float32))


def _shifted(
    length: int, generator: np.random.Generator, fraction: float, num_images: int
) -> NDArray[np.int64]:
    """Return for each image the source index of every pixel along an axis, shape (B, length)."""
    largest = round(fraction * length)
    shift = generator.integers(-largest, largest + 1, (num_images, 1))
    source: NDArray[np.int64] = np.clip(np.arange(length) + shift, 0, length - 1)
    return source
