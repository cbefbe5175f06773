"""Heads of the contrastive term: radiomics and image embeddings meet in one space.

They are used in training only and travel in the bundle, so that a later round goes on with them.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

NUM_RADIOMICS = 102
"""Features of a region: pyradiomics' seven 2D classes."""
HIDDEN_SIZE = 128
EMBEDDING_SIZE = 64


class _Projection(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_inputs, HIDDEN_SIZE)
        self.out = nn.Linear(HIDDEN_SIZE, EMBEDDING_SIZE)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings, shape (P, 64), of inputs, shape (P, inputs)."""
        embedding: Tensor = self.out(nn.functional.gelu(self.hidden(inputs)))
        return embedding

    if TYPE_CHECKING:
        __call__ = forward


class RadiomicsEncoder(_Projection):
    """Normalised radiomics features (P, R) to embeddings (P, 64)."""


class ImageProjection(_Projection):
    """The network's embeddings (P, C) to embeddings (P, 64)."""


class GuidanceHeads(nn.Module):
    """Both heads of the contrastive term."""

    def __init__(self, num_channels: int, num_radiomics: int = NUM_RADIOMICS) -> None:
        super().__init__()
        self.image = ImageProjection(num_channels)
        self.radiomics = RadiomicsEncoder(num_radiomics)


def build_heads(num_channels: int, seed: int | None = None) -> GuidanceHeads:
    """Make heads with random weights for a network with this many channels (`num_channels`).

    Args:
        num_channels: C of the network's embedding.
        seed: Equal seeds give equal weights; None draws from torch's global generator.
    """
    if seed is None:
        return GuidanceHeads(num_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GuidanceHeads(num_channels)
