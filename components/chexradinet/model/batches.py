"""What training reads: images, labels and regions, and the tensors of a batch of them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexradinet.config import TrainConfig
from chexradinet.model.augmentation import augment
from chexradinet.model.guidance import GuidanceHeads
from chexradinet.model.inference import Fetch
from chexradinet.model.losses import Pairs


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
