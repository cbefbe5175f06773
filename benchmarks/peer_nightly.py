"""The nightly script that users start from: pydicom, a model, pytorch-grad-cam, pyradiomics, a CSV.

One X-ray after another and one image a forward pass, as such scripts are written. The box is the
tightest one around the heatmap of the highest-scoring finding, where that is at least half of its
maximum. Triplet attention is written as its publication writes it (`as_published`), or as ours.
"""

import copy
import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from radiomics.featureextractor import RadiomicsFeatureExtractor
from torch import Tensor, nn

from benchmarks import ingest, radiomics
from chexradinet.model.attention import Gate, TripletAttention
from chexradinet.model.resnet import ChexRadiNet, normalise

HEATMAP_FRACTION = 0.5
"""Fraction of the heatmap's maximum that the box encloses."""


class Logits(nn.Module):
    """The network as such scripts know one: images to logits."""

    def __init__(self, network: ChexRadiNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape (B, F)."""
        return self.network(images).logits


class PublishedAttention(TripletAttention):
    """Triplet attention as its authors wrote it: each gate on a rotated copy of the features.

    Source: Misra et al. 2021, arXiv:2010.03045, figure 3. It computes what ours does.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the weighted feature map, shape (B, C, H, W) as given."""
        by_height = _rotated(self.over_height, features, (0, 2, 1, 3))
        by_width = _rotated(self.over_width, features, (0, 3, 2, 1))
        return (by_height + by_width + _weighted(self.over_channels, features)) / 3

    def add_to(self, skipped: Tensor, features: Tensor) -> Tensor:
        """Return `relu(skipped + forward(features))`: the end of a residual block."""
        return (skipped + self(features)).relu_()


def _rotated(gate: Gate, features: Tensor, order: tuple[int, int, int, int]) -> Tensor:
    turned = features.permute(order).contiguous()
    return _weighted(gate, turned).permute(order).contiguous()


def _weighted(gate: Gate, features: Tensor) -> Tensor:
    largest, mean = features.amax(1, keepdim=True), features.mean(1, keepdim=True)
    return features * gate(torch.cat((largest, mean), 1))


def as_published(network: ChexRadiNet) -> ChexRadiNet:
    """Return a copy with the same weights whose attention is written as its publication does."""
    made = copy.deepcopy(network)
    for stage in (made.layer1, made.layer2, made.layer3, made.layer4):
        for block in stage:
            attention = PublishedAttention().train(network.training)
            attention.load_state_dict(block.attention.state_dict())
            block.attention = attention
    return made


@dataclass(frozen=True)
class Peer:
    """The script with all that it loads before its first X-ray."""

    network: Logits
    grad_cam: GradCAM
    extractor: RadiomicsFeatureExtractor


def open_peer(network: ChexRadiNet, with_shape: bool) -> Peer:
    """Load the script.

    Args:
        network: In evaluation mode, its batch norms as trained.
        with_shape: pyradiomics as it comes, 107 features with the shape of a volume; else our 102.
    """
    logging.getLogger("radiomics").setLevel(logging.CRITICAL + 1)
    logits = Logits(network)
    grad_cam = GradCAM(logits, [network.layer4[-1]])
    extractor = RadiomicsFeatureExtractor() if with_shape else radiomics.extractor()
    return Peer(logits, grad_cam, extractor)


def run_peer(peer: Peer, paths: Sequence[Path], folder: Path) -> list[int]:
    """Score files into a CSV and overlays; return the height and width of each box, in pixels."""
    sides: list[int] = []
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        for path in paths:
            pixels = ingest.peer(path)
            values, box = _measured(peer, pixels, folder / f"{path.stem}.png")
            writer.writerow([path.name, *values])
            sides += box
    return sides


def _measured(peer: Peer, pixels: NDArray[np.uint8], target: Path) -> tuple[list[float], list[int]]:
    images = normalise(torch.from_numpy(pixels)[None])
    with torch.no_grad():
        logits = peer.network(images)[0]
    top = int(logits.argmax())
    heatmap = peer.grad_cam(images, [ClassifierOutputTarget(top)])[0]
    rows, columns = np.nonzero(heatmap >= HEATMAP_FRACTION * heatmap.max())
    # pyradiomics refuses a mask without background.
    top_row, bottom = max(rows.min(), 1), min(rows.max() + 1, len(pixels) - 1)
    left, right = max(columns.min(), 1), min(columns.max() + 1, len(pixels) - 1)
    mask = np.zeros(pixels.shape, np.uint8)
    mask[top_row:bottom, left:right] = 1
    found = peer.extractor.execute(
        sitk.GetImageFromArray(pixels.astype(np.float64)[None]), sitk.GetImageFromArray(mask[None])
    )
    features = [float(value) for name, value in found.items() if name.startswith("original_")]
    colored = cv2.applyColorMap((heatmap * 255).astype(np.uint8), cv2.COLORMAP_JET)
    drawn = cv2.addWeighted(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), 0.6, colored, 0.4, 0)
    cv2.rectangle(drawn, (int(left), int(top_row)), (int(right), int(bottom)), (255, 255, 255))
    cv2.imwrite(str(target), drawn)
    sides = [int(bottom - top_row), int(right - left)]
    return [*logits.sigmoid().tolist(), *features], sides
