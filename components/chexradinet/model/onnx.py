"""A bundle's network as one ONNX graph: logits, maps and embedding of a batch of images.

The input is what `normalise` gives, (B, 1, side, side) float32, B free. Calibration, thresholds and
names of findings stay in `bundle.json`.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from chexradinet.artifacts import writing_file
from chexradinet.errors import ConfigError
from chexradinet.model.attention import TripletAttention
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import folded

OUTPUTS = ("logits", "maps", "embedding")
_OPSET = 17


class _TracedAttention(nn.Module):
    """Triplet attention by its definition: no step depends on a size, so a graph can hold it."""

    def __init__(self, attention: TripletAttention) -> None:
        super().__init__()
        self.attention = attention

    def add_to(self, skipped: Tensor, features: Tensor) -> Tensor:
        """Return the end of a residual block, as `TripletAttention.add_to` does."""
        own = self.attention
        columns = own.over_height(_pooled(features, 2))  # (B, 1, C, W)
        rows = own.over_width(_pooled(features, 3).transpose(2, 3))  # (B, 1, H, C)
        places = own.over_channels(_pooled(features, 1))  # (B, 1, H, W)
        weights = columns[:, 0, :, None, :] + rows[:, 0].transpose(1, 2).unsqueeze(3) + places
        return (skipped + features * (weights / 3)).relu()


def _pooled(features: Tensor, axis: int) -> Tensor:
    return torch.stack((features.amax(axis), features.mean(axis)), 1)


def export_onnx(bundle: Path, target: Path) -> None:
    """Write a bundle's network as an ONNX file.

    Args:
        bundle: Its directory; it is verified.
        target: File to write; an older one is replaced.

    Raises:
        ArtifactError: the bundle is damaged or not sound.
        ConfigError: the package `onnx` is not installed.
    """
    loaded = load_bundle(bundle)
    network = folded(loaded.network)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            block.attention = _TracedAttention(block.attention)
    side = loaded.info.preprocessing.image_side
    with writing_file(target) as temporary, warnings.catch_warnings(), torch.no_grad():
        # Tracing will end in some later torch; what follows it needs two more packages.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (torch.zeros(2, 1, side, side),),
                str(temporary),
                dynamo=False,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "batch"} for name in ("images", *OUTPUTS)},
                opset_version=_OPSET,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConfigError(
                f"the network cannot be exported ({error}); install the package onnx"
            ) from error
