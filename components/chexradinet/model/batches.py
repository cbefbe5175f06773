"""What training reads, in which order, and the tensors of a batch of it.

Order and augmentation are pure functions of seed, epoch and step. Nothing here knows of guidance,
so every arm sees equal images in equal order; and nothing keeps a state, so an interrupted run
continues with what it would have seen.

On a CPU, images are read where they lie. An accelerator must not wait for them: they are copied
there once if they fit, else a thread reads ahead into page-locked memory.
"""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexradinet.config import TrainConfig
from chexradinet.model.distributed import Ranks
from chexradinet.model.inference import Fetch
from chexradinet.model.losses import GuidanceHeads, Pairs
from chexradinet.model.resnet import normalise, placed

_ORDER, _AUGMENTATION, _PERMUTATION = range(3)
RESIDENT_FRACTION = 0.5
"""Largest part of an accelerator's free memory that the images may take."""
BATCHES_AHEAD = 3
"""Batches that the reading thread prepares."""
_CHUNK_ROWS = 256

Item = TypeVar("Item")


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
    """Radiomics of regions, any number of them per image."""

    image_row: NDArray[np.int64]
    """Row of the data set that a region lies in, shape (P,)."""
    features: NDArray[np.float32]
    """Normalised features, shape (P, R)."""


@dataclass(frozen=True, eq=False)
class Part:
    """What is computed at once: a batch, or one of the parts that it is accumulated from."""

    step: int
    """Number of its optimisation step in the whole training, from 0."""
    batch_size: int
    """Images of the whole batch."""
    start: int
    """Place of its first image in the batch."""
    rows: NDArray[np.int64]
    """Rows of the data set, over all processes."""


def num_batches(num_images: int, batch_size: int) -> int:
    """Return the steps of an epoch."""
    return math.ceil(num_images / batch_size)


def epoch_batches(
    rows: NDArray[np.int64], config: TrainConfig, epoch: int
) -> list[NDArray[np.int64]]:
    """Return the rows of an epoch's batches: each row once, sizes equal up to one."""
    order = np.random.default_rng((config.seed, _ORDER, epoch)).permutation(rows)
    return np.array_split(order, num_batches(len(rows), config.batch_size))


def steps_from(
    rows: NDArray[np.int64], config: TrainConfig, first_step: int
) -> Iterator[list[Part]]:
    """Yield the parts of each step from `first_step` to the end of the training."""
    epoch, skipped = divmod(first_step, num_batches(len(rows), config.batch_size))
    step = first_step
    for number in range(epoch, config.epochs):
        for batch in epoch_batches(rows, config, number)[skipped if number == epoch else 0 :]:
            pieces = np.array_split(batch, min(config.accumulation, len(batch)))
            starts = np.cumsum([0, *map(len, pieces)])
            yield [
                Part(step, len(batch), int(start), piece)
                for start, piece in zip(starts[:-1], pieces, strict=True)
            ]
            step += 1


def permuted(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return the features of all regions in another order: the control without information."""
    order = np.random.default_rng((seed, _PERMUTATION)).permutation(len(features))
    return features[order]


def augment(
    images: Tensor, config: TrainConfig, step: int, start: int = 0, batch_size: int = 0
) -> Tensor:
    """Return network input with changed place, contrast and brightness, on the images' device.

    Args:
        images: uint8, shape (B, H, W).
        config: Largest changes, and the seed.
        step: Number of the step in the whole training, from 0.
        start: Place of the first image in its batch: an image is changed in the same way in
            whatever part and process it is computed.
        batch_size: Images of the whole batch; 0 for as many as are given.

    Returns:
        float32, shape (B, 1, H, W); if the shift leaves a margin, the border is repeated.
    """
    generator = np.random.default_rng((config.seed, _AUGMENTATION, step))
    whole, chosen = batch_size or len(images), slice(start, start + len(images))
    size = (whole, 1, 1, 1)
    height, width = images.shape[1:]
    rows = _shifted(height, generator, config.max_shift_fraction, whole)[chosen]
    columns = _shifted(width, generator, config.max_shift_fraction, whole)[chosen]
    contrast = (1 + config.max_contrast_change * generator.uniform(-1, 1, size))[chosen]
    brightness = (config.max_brightness_change * generator.uniform(-1, 1, size))[chosen]
    image = placed(torch.arange(len(images)), images.device)[:, None, None]
    source_rows = placed(torch.from_numpy(rows), images.device)[:, :, None]
    source_columns = placed(torch.from_numpy(columns), images.device)[:, None, :]
    scale = placed(torch.from_numpy(contrast.astype(np.float32)), images.device)
    offset = placed(torch.from_numpy(brightness.astype(np.float32)), images.device)
    return normalise(images[image, source_rows, source_columns]).mul_(scale).add_(offset)


def _shifted(
    length: int, generator: np.random.Generator, fraction: float, num_images: int
) -> NDArray[np.int64]:
    """Return for each image the source index of every pixel along an axis, shape (B, length)."""
    largest = round(fraction * length)
    shift = generator.integers(-largest, largest + 1, (num_images, 1))
    source: NDArray[np.int64] = np.clip(np.arange(length) + shift, 0, length - 1)
    return source


@dataclass(frozen=True, eq=False)
class Batches:
    """Gives the tensors of a step on the device."""

    data: TrainingData
    regions: Regions | None
    config: TrainConfig
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)

    def from_step(self, first_step: int) -> Generator[list[tuple[Part, Tensor]]]:
        """Yield each step's parts with this process's images of them, uint8 on the device."""
        steps = steps_from(self.data.rows, self.config, first_step)
        if self.device.type != "cuda":
            yield from (self._read(parts) for parts in steps)
        elif self._fits_on_device():
            yield from self._resident(steps)
        else:
            for read in read_ahead(map(self._pinned, steps)):
                yield [(part, placed(images, self.device)) for part, images in read]

    def input(self, part: Part, images: Tensor) -> Tensor:
        """Return augmented network input of this process's share, (B, 1, H, W)."""
        start = part.start + self.ranks.share(len(part.rows)).start
        return augment(images, self.config, part.step, start, part.batch_size)

    def labels(self, part: Part) -> Tensor:
        """Return the labels of all processes' images, (B, F), on the host."""
        return torch.from_numpy(self.data.labels[part.rows])

    def pairs(self, part: Part, embedding: Tensor, heads: GuidanceHeads | None) -> Pairs | None:
        """Return all regions of all processes' images, as the heads see them."""
        if self.regions is None or heads is None:
            return None
        place = np.full(len(self.data.labels), -1)
        place[part.rows] = np.arange(len(part.rows))
        owner = place[self.regions.image_row]
        chosen = owner >= 0
        owners = placed(torch.from_numpy(owner[chosen]), self.device)
        features = placed(torch.from_numpy(self.regions.features[chosen]), self.device)
        return Pairs(heads.image(embedding)[owners], heads.radiomics(features), owners)

    def _own(self, part: Part) -> NDArray[np.int64]:
        return part.rows[self.ranks.share(len(part.rows))]

    def _read(self, parts: list[Part]) -> list[tuple[Part, Tensor]]:
        return [(part, torch.as_tensor(self.data.fetch(self._own(part)))) for part in parts]

    def _pinned(self, parts: list[Part]) -> list[tuple[Part, Tensor]]:
        return [(part, images.pin_memory()) for part, images in self._read(parts)]

    def _fits_on_device(self) -> bool:
        one = self.data.fetch(self.data.rows[:1])
        free, _ = torch.cuda.mem_get_info(self.device)
        return one.nbytes * len(self.data.rows) <= RESIDENT_FRACTION * free

    def _resident(self, steps: Iterator[list[Part]]) -> Iterator[list[tuple[Part, Tensor]]]:
        rows = np.unique(self.data.rows)
        chunks = (rows[i : i + _CHUNK_ROWS] for i in range(0, len(rows), _CHUNK_ROWS))
        images = torch.cat(
            [placed(torch.as_tensor(self.data.fetch(c)), self.device) for c in chunks]
        )
        for parts in steps:
            places = [np.searchsorted(rows, self._own(part)) for part in parts]
            yield [
                (part, images[placed(torch.from_numpy(place), self.device)])
                for part, place in zip(parts, places, strict=True)
            ]


def read_ahead(steps: Iterable[Item]) -> Iterator[Item]:
    """Yield what an iterable yields, taken from it by a thread a few items ahead.

    What the iterable raises is raised here.
    """
    remaining = iter(steps)
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, remaining, None) for _ in range(BATCHES_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, remaining, None))
            yield item
