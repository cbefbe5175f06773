"""Triplet attention: three cheap gates over the planes of a feature map, averaged.

Each gate looks along one axis (height, width, channels): the largest and the mean value along it
form a two-channel map, a 7x7 convolution and a sigmoid turn the map into weights in (0, 1).

Source: Misra et al. 2021, arXiv:2010.03045, section 3; 300 parameters. The publication permutes the
feature map so that the axis comes second, there and back for each gate, which doubles the cost of a
ResNet-50. Here the features are read as they lie, (B, H, W, C), and multiplied once; for the two
maps that have channels as an axis, the 7x7 convolution is a 7-tap convolution along the channels,
with the positions of the other axis as its inputs and outputs: many small multiplications become
few large ones. `python -m benchmarks.attention` measures what is left.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL_SIZE = 7
_REACH = KERNEL_SIZE // 2
_TILE_ELEMENTS = 1 << 18
"""Features combined at a time in inference, so that intermediate results stay in the cache."""


class Gate(nn.Module):
    """Convolution, batch norm and sigmoid: pooled map (B, 2, P, Q) to weights (B, 1, P, Q)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, KERNEL_SIZE, padding=_REACH, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return weights in (0, 1), shape (B, 1, P, Q), for a pooled map of shape (B, 2, P, Q)."""
        return self._squash(self.conv(pooled))

    def along_channels(self, pooled: Tensor, kernel: Tensor) -> Tensor:
        """Return the weights of a map whose second axis is channels, by a convolution along these.

        Args:
            pooled: Largest values above mean values, shape (B, 2P, C).
            kernel: `conv`'s, with channels as its last axis, shape (2, 7, 7).

        Returns:
            Weights in (0, 1), shape (B, 1, P, C): what `forward` gives for (B, 2, P, C).
        """
        length = pooled.shape[1] // 2
        banded = _banded(kernel, length)
        return self._squash(functional.conv1d(pooled, banded, padding=_REACH).unsqueeze(1))

    def _squash(self, response: Tensor) -> Tensor:
        weights: Tensor = torch.sigmoid(self.bn(response))
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

    def gates(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a third of each gate's weights; their broadcast sum weighs the features.

        Args:
            features: Shape (B, C, H, W), fastest in the channels-last layout.

        Returns:
            Over height (B, 1, W, C), over width (B, H, 1, C), over channels (B, H, W, 1).
        """
        width = features.shape[3]
        cells = features.permute(0, 2, 3, 1)  # (B, H, W, C)
        # Each reduction is the fastest of several on a CPU: `amax` over height or width of the
        # permuted view takes ten times as long, pooling over height twice as long.
        columns = torch.cat((cells.amax(1), cells.mean(1)), 1)  # (B, 2W, C)
        pooled = (
            functional.max_pool2d(features, (1, width)),
            functional.avg_pool2d(features, (1, width)),
        )
        rows = torch.cat(pooled, 2).squeeze(3).transpose(1, 2)  # (B, 2H, C)
        places = torch.stack((cells.amax(3), cells.mean(3)), 1)  # (B, 2, H, W)
        over_height = self.over_height.along_channels(
            columns, self.over_height.conv.weight[0].transpose(1, 2)
        )
        over_width = self.over_width.along_channels(rows, self.over_width.conv.weight[0])
        over_channels = self.over_channels(places)
        return (
            over_height / 3,
            over_width.transpose(1, 2) / 3,
            over_channels.permute(0, 2, 3, 1) / 3,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the weighted feature map, shape (B, C, H, W) as given."""
        over_height, over_width, over_channels = self.gates(features)
        weights = over_height + over_channels + over_width  # (B, H, W, C)
        return features * weights.permute(0, 3, 1, 2)

    def add_to(self, skipped: Tensor, features: Tensor) -> Tensor:
        """Return `relu(skipped + forward(features))`: the end of a residual block.

        On a CPU without gradients, the result takes the memory of `features`.

        Args:
            skipped: What the block leaves out, shape (B, C, H, W).
            features: The block's own last features, of the same shape.
        """
        # An accelerator has no use for tiles: each would be a kernel to start.
        if torch.is_grad_enabled() or features.device.type != "cpu":
            return (skipped + self(features)).relu_()
        gates = self.gates(features)
        given, skipped_cells = features.permute(0, 2, 3, 1), skipped.permute(0, 2, 3, 1)
        for part in _tiles(given):
            tile = given[part]
            over_height, over_width, over_channels = (gate[_within(part, gate)] for gate in gates)
            weights = (over_height + over_channels).add_(over_width)
            torch.addcmul(skipped_cells[part], tile, weights, out=tile).relu_()
        return features

    if TYPE_CHECKING:
        __call__ = forward


def _banded(kernel: Tensor, length: int) -> Tensor:
    """Return a 2D kernel as a 1D one: its first axis unrolled into inputs and outputs.

    Args:
        kernel: Shape (2, 7, 7).
        length: Positions P along the axis to unroll.

    Returns:
        Shape (P, 2P, 7): `[o, p * P + i, k]` is `kernel[p, i - o + 3, k]`, 0 outside.
    """
    margin = length - 1 - _REACH  # negative cuts off what no pair of positions needs
    padded = functional.pad(kernel.transpose(1, 2), (margin, margin))  # (2, 7, 2P - 1)
    windows = padded.unfold(2, length, 1).flip(2)  # (2, 7, P out, P in)
    return windows.permute(2, 0, 3, 1).reshape(length, 2 * length, KERNEL_SIZE)


def _tiles(cells: Tensor) -> list[tuple[slice, slice]]:
    """Return slices of images and rows that cover (B, H, W, C), about a tile's elements each."""
    number, height, width, channels = cells.shape
    rows = min(height, max(1, _TILE_ELEMENTS // (width * channels)))
    images = max(1, _TILE_ELEMENTS // (height * width * channels))
    return [
        (slice(image, image + images), slice(row, row + rows))
        for image in range(0, number, images)
        for row in range(0, height, rows)
    ]


def _within(part: tuple[slice, slice], gate: Tensor) -> tuple[slice, slice]:
    """Return the slices of a tile for a gate, whose only row serves all rows."""
    return part if gate.shape[1] > 1 else (part[0], slice(None))
