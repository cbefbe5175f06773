"""Forward passes over many images without gradients."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from chexradinet.model.resnet import ChexRadiNet, normalise

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
    maps: NDArray[np.float32] | None
    """Shape (n, F, h, w); None where they were not asked for."""


def choose_device(device: str = "auto") -> torch.device:
    """Return the named device; `auto` is the accelerator where there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def predict_batches(
    network: ChexRadiNet,
    fetch: Fetch,
    rows: NDArray[np.int64],
    batch_size: int = 32,
    device: str = "auto",
    maps: bool = True,
) -> Iterator[Predictions]:
    """Yield the predictions of one batch after another; memory does not grow with the rows.

    Args:
        network: Moved to the device and set to evaluation mode.
        fetch: Gives the images of a batch.
        rows: Rows to predict, in this order.
        batch_size: Images a forward pass; results do not depend on it.
        device: `auto`, `cpu` or `cuda`.
        maps: Whether the maps are wanted.
    """
    place = choose_device(device)
    network.to(place).eval()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        with torch.inference_mode():
            images = torch.as_tensor(fetch(batch)).to(place, non_blocking=True)
            found = network(normalise(images))
            yield Predictions(
                batch,
                found.logits.cpu().numpy(),
                found.embedding.cpu().numpy(),
                found.maps.contiguous().cpu().numpy() if maps else None,
            )


def predict(
    network: ChexRadiNet,
    fetch: Fetch,
    rows: NDArray[np.int64],
    batch_size: int = 32,
    device: str = "auto",
    maps: bool = True,
) -> Predictions:
    """Return the predictions of all rows at once; see `predict_batches` for the arguments."""
    parts = list(predict_batches(network, fetch, rows, batch_size, device, maps))
    if not parts:
        empty = np.zeros((0, network.num_findings), np.float32)
        embedding = np.zeros((0, network.num_channels), np.float32)
        return Predictions(rows, empty, embedding, empty[..., None, None] if maps else None)
    return Predictions(
        rows,
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        np.concatenate([part.maps for part in parts if part.maps is not None]) if maps else None,
    )
