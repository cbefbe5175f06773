"""Triplet attention: three cheap gates over the planes of a feature map, averaged.

Each gate looks along one axis (height, width, channels): the largest and the mean value along it
form a two-channel map, a 7x7 convolution and a sigmoid turn the map into weights in (0, 1). The
textbook form permutes the feature map so that the axis comes second, there and back for each gate;
here the axis is reduced where it lies, only the small maps are permuted, and there is one
multiplication.

Source: Misra et al. 2021, arXiv:2010.03045, section 3; 300 parameters.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

KERNEL_SIZE = 7


class Gate(nn.Module):
    """Convolution, batch norm and sigmoid: pooled map (B, 2, P, Q) to weights (B, 1, P, Q)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL_SIZE, padding=KERNEL_SIZE // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return weights in (0, 1), shape (B, 1, P, Q), for a pooled map of shape (B, 2, P, Q)."""
        weights: Tensor = torch.sigmoid(self.bn(self.conv(pooled)))
        return weights

    if TYPE_CHECKING:
        __call__ = forward


class TripletAttention(nn.Module):
    """Weigh a feature map by the mean of three gates, one for each axis but the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.over_height = Gate()
        self.over_width = Gate()
        self.over_channels = Gate()

    def gate(self, features: Tensor) -> Tensor:
        """Return the weights of a feature map, in (0, 1), of its shape (B, C, H, W)."""
        by_height = self.over_height(_extremes(features, 2))  # (B, 1, C, W)
        by_width = self.over_width(_extremes(features, 3).transpose(2, 3))  # (B, 1, H, C)
        by_channels = self.over_channels(_extremes(features, 1))  # (B, 1, H, W)
        columns = by_height.transpose(1, 2) / 3  # (B, C, 1, W)
        rows = by_width.permute(0, 3, 2, 1) / 3  # (B, C, H, 1)
        return columns + by_channels / 3 + rows

    def gated_sum(self, features: Tensor, skipped: Tensor) -> Tensor:
        """Return `skipped + forward(features)`, in one pass over memory."""
        return torch.addcmul(skipped, features, self.gate(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the weighted feature map, shape (B, C, H, W) as given."""
        return features * self.gate(features)

    if TYPE_CHECKING:
        __call__ = forward


def _extremes(features: Tensor, axis: int) -> Tensor:
    """Return the largest and the mean value along an axis, shape (B, 2, the other two axes)."""
    return torch.stack((features.amax(axis), features.mean(axis)), 1)
