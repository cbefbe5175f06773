"""What training reads, in which order, and the tensors of a batch of it.

Order and augmentation are pure functions of seed, epoch and step. Nothing here knows of guidance,
so every arm sees equal images in equal order; and nothing keeps a state, so an interrupted run
continues with what it would have seen.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexradinet.config import TrainConfig
from chexradinet.model.inference import Fetch
from chexradinet.model.losses import GuidanceHeads, Pairs
from chexradinet.model.resnet import normalise

_ORDER, _AUGMENTATION, _PERMUTATION = range(3)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Images and labels of a data set, and which of its rows to train on."""

    images: NDArray[np.uint8] | Fetch
    """All N images, uint8 (N, H, W), in memory or memory-mapped; or what gives some rows."""
    labels: NDArray[np.float32]
    """1, 0 or NaN for unknown, shape (N, F)."""
    rows: NDArray[np.int64]
    """Rows of the training split, each in [0, N)."""

    def fetch(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of some rows, uint8 (n, H, W)."""
        return self.images(rows) if callable(self.images) else self.images[rows]


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Radiomics of regions, any number of them an image."""

    image_row: NDArray[np.int64]
    """Row of the data set that a region lies in, shape (P,)."""
    features: NDArray[np.float32]
    """Normalised features, shape (P, R)."""


@dataclass(frozen=True)
class Batches:
    """Gives the tensors of a step on the device."""

    data: TrainingData
    regions: Regions | None
    config: TrainConfig
    device: torch.device

    def images(self, rows: NDArray[np.int64], step: int) -> Tensor:
        """Return augmented network input, (B, 1, H, W)."""
        return augment(torch.as_tensor(self.data.fetch(rows)).to(self.device), self.config, step)

    def labels(self, rows: NDArray[np.int64]) -> Tensor:
        """Return labels, (B, F)."""
        return torch.from_numpy(self.data.labels[rows]).to(self.device)

    def pairs(
        self, rows: NDArray[np.int64], embedding: Tensor, heads: GuidanceHeads | None
    ) -> Pairs | None:
        """Return all regions of the batch's images, as the heads see them."""
        if self.regions is None or heads is None:
            return None
        place = np.full(len(self.data.labels), -1)
        place[rows] = np.arange(len(rows))
        owner = place[self.regions.image_row]
        chosen = owner >= 0
        owners = torch.from_numpy(owner[chosen]).to(self.device)
        features = torch.from_numpy(self.regions.features[chosen]).to(self.device)
        return Pairs(heads.image(embedding)[owners], heads.radiomics(features), owners)


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
