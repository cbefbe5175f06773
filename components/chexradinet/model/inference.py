"""Forward passes over many images without gradients."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from chexradinet.config import Precision
from chexradinet.model.resnet import ChexRadiNet, normalise, placed
from chexradinet.monitoring import ProgressLog
from chexradinet.parallel import keep_freed_memory

Fetch = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Gives the images of some rows of a data set: uint8, shape (n, H, W)."""


class Predictions(NamedTuple):
    """What the network says about some rows, float32."""

    rows: NDArray[np.int64]
    """Rows of the data set, shape (n,)."""
    logits: NDArray[np.float32]
    """Shape (n, F)."""
    embedding: NDArray[np.float32]
    """Shape (n, C)."""
    maps: NDArray[np.float32]
    """Shape (n, F, h, w); h and w are 0 if maps were not asked for."""


def choose_device(device: str = "auto") -> torch.device:
    """Return the named device; `auto` is the accelerator if there is one, else the CPU.

    On a CPU, this process keeps what it frees from then on: each pass takes and frees the same
    megabytes of features, and to have them mapped again took 5% of a pass.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    return torch.device(device)


def resolved(precision: Precision, device: torch.device) -> Precision:
    """Return what `auto` stands for on a device, and anything else as it is."""
    if precision is not Precision.AUTO:
        return precision
    return Precision.FLOAT16 if device.type == "cuda" else Precision.FLOAT32


def folded(network: ChexRadiNet) -> ChexRadiNet:
    """Return a copy in evaluation mode whose batch norms are part of the convolutions before them.

    It computes the same in fewer passes over memory, up to rounding, and cannot be trained.
    """
    made: ChexRadiNet = copy.deepcopy(network).eval()
    _fold(made, "conv1", "bn1")
    for stage in (made.layer1, made.layer2, made.layer3, made.layer4):
        for block in stage:
            for number in range(1, 4 if hasattr(block, "conv3") else 3):
                _fold(block, f"conv{number}", f"bn{number}")
            if block.downsample is not None:
                _fold(block.downsample, "0", "1")
    made.to(memory_format=torch.channels_last)
    return made


def _fold(owner: nn.Module, conv: str, norm: str) -> None:
    before, after = owner.get_submodule(conv), owner.get_submodule(norm)
    if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
        setattr(owner, conv, fuse_conv_bn_eval(before, after))
        setattr(owner, norm, nn.Identity())


def predict_folded(
    working: ChexRadiNet,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    maps: bool = True,
    precision: Precision = Precision.FLOAT32,
) -> Predictions:
    """Return the predictions of one batch.

    Args:
        working: From `folded`, on the device that computes.
        images: Shape (n, H, W).
        rows: What the images are called, shape (n,).
        maps: Whether the maps are wanted.
        precision: Arithmetic of the network; a batch that exceeds float16 is done in float32.
    """
    place = next(working.parameters()).device
    halved = resolved(precision, place) is Precision.FLOAT16
    with torch.inference_mode():
        given = normalise(placed(torch.as_tensor(images), place))
        with torch.autocast(place.type, torch.float16, enabled=halved):
            found = working(given)
        if halved and not found.maps.isfinite().all():
            found = working(given)
        wanted = found.maps if maps else found.maps[..., :0, :0]
        return Predictions(
            rows,
            found.logits.cpu().numpy(),
            found.embedding.cpu().numpy(),
            wanted.contiguous().cpu().numpy(),
        )


def predict(
    network: ChexRadiNet,
    fetch: Fetch,
    rows: NDArray[np.int64],
    batch_size: int = 32,
    device: str = "auto",
    maps: bool = True,
    precision: Precision = Precision.FLOAT32,
) -> Predictions:
    """Return the predictions of all rows.

    Args:
        network: Left as it is; a folded copy does the work.
        fetch: Gives the images of a batch.
        rows: Rows to predict, in this order.
        batch_size: Images per forward pass; results do not depend on it.
        device: `auto`, `cpu` or `cuda`.
        maps: Whether the maps are wanted.
        precision: Arithmetic of the network.
    """
    working = folded(network).to(choose_device(device))
    parts, progress = [], ProgressLog("images")
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        parts.append(predict_folded(working, fetch(batch), batch, maps, precision))
        progress(start + len(batch), len(rows))
    if not parts:
        empty = np.zeros((0, network.num_findings), np.float32)
        embedding = np.zeros((0, network.num_channels), np.float32)
        return Predictions(rows, empty, embedding, empty[..., None, None])
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))
