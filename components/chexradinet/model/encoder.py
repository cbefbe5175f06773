"""Pre-training an encoder: a network learns to predict targets on its own grid, from images alone.

A head of two 1x1 convolutions is trained with the network by smooth L1, and dropped afterwards.
Images are shifted by whole cells, so that the targets shift with them, and the cells that a shift
leaves without an image do not count. Contrast and brightness stay: the targets depend on them.

What is left is stored as an encoder, the network without its last layer, to start a training from.
`encoder.json` names the SHA-256 of the weights; the SHA-256 of its own canonical JSON, without the
key `digest`, is the encoder's identity. Equal encoders give equal bytes.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chexradinet.artifacts import Head, read_document, sha256_of, write_document, writing_directory
from chexradinet.config import PretrainConfig, digest_of
from chexradinet.errors import ArtifactError, Interrupted, MismatchError, TrainingError
from chexradinet.model.batches import epoch_batches, num_batches
from chexradinet.model.bundle import write_provenance
from chexradinet.model.checkpoint import (
    Position,
    Trained,
    load_checkpoint,
    prepared,
    save_checkpoint,
)
from chexradinet.model.inference import Fetch, choose_device
from chexradinet.model.resnet import ChexRadiNet, normalise

KIND = "encoder"
SCHEMA = 1
ENCODER_FILE = "encoder.json"
ENCODER_HEAD = Head(ENCODER_FILE, KIND)
"""By which a directory is known for an encoder."""
_WEIGHTS_FILE = "weights.safetensors"
_SHIFT, _MASK = 3, 4  # after the streams of `batches`
_HEAD_CHANNELS = 128
_MASK_CELLS = 2


@dataclass(frozen=True, kw_only=True)
class PretextData:
    """Images and what to predict of them; nothing of a label is in it."""

    images: Fetch
    """Returns images of some rows, uint8 (n, H, W)."""
    targets: Callable[[NDArray[np.int64]], NDArray[np.float32]] | None
    """Returns their targets, (n, D, h, w); None to predict hidden pixels."""
    num_targets: int
    """D, or the pixels of a cell."""
    rows: NDArray[np.int64]
    """Rows to train on."""
    identity: str
    """Digest of all of it."""


@dataclass(frozen=True)
class _Batch:
    images: Tensor
    """Network input, (B, 1, H, W)."""
    targets: Tensor
    """(B, D, h, w)."""
    counted: Tensor
    """1 if a cell counts, else 0, (B, 1, h, w)."""

    def loss(self, predicted: Tensor) -> Tensor:
        """Return the mean smooth L1 over the cells that count."""
        errors = nn.functional.smooth_l1_loss(predicted, self.targets, reduction="none")
        return (errors * self.counted).sum() / (self.counted.sum() * errors.shape[1])


def pretrain_network(
    network: ChexRadiNet,
    data: PretextData,
    config: PretrainConfig,
    *,
    progress: Callable[[int, int, float], None],
    checkpoint: Path | None,
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool],
) -> list[dict[str, Any]]:
    """Train in place; the network ends in evaluation mode, on the device.

    On a CPU, equal arguments give equal weights, to the bit with one thread.

    Args:
        network: Trained on from the weights it has; its last layer is not touched.
        data: Images and targets.
        config: Schedule and seed.
        progress: Called after each step with steps done, steps in all, and the loss.
        checkpoint: Directory for the state after each epoch; training continues from it. None
            keeps none.
        should_stop: Asked before each step.
        should_save: Asked after each step within an epoch: write the state already now?

    Returns:
        A record per epoch: `epoch` from 0 and the mean `loss`.

    Raises:
        TrainingError: the loss is not finite.
        Interrupted: `should_stop` said so; the state is in `checkpoint`.
        MismatchError: `checkpoint` is of another run.
    """
    place = choose_device("auto")
    head = _head(network, data, config.seed)
    modules = nn.ModuleDict({"network": network, "head": head})
    run = pretext_digest(network, data, config)
    modules.to(place).to(memory_format=torch.channels_last).train()
    per_epoch = num_batches(len(data.rows), config.batch_size)
    steps = config.pretext_epochs * per_epoch
    trained = prepared(modules, config.training(), steps, place)
    position = load_checkpoint(checkpoint, run, trained) if checkpoint else Position()
    while position.step < steps:
        if should_stop():
            if checkpoint:
                save_checkpoint(checkpoint, run, trained, position)
            raise Interrupted(f"pre-training was interrupted after step {position.step} of {steps}")
        epoch, index = divmod(position.step, per_epoch)
        rows = epoch_batches(data.rows, config.training(), epoch)[index]
        batch = _batch(data, rows, config, position.step, network.config.map_stride, place)
        mixed = config.mixed_precision and place.type == "cuda"
        with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
            predicted = head(network.features(batch.images))
        loss = _descend(trained, batch.loss(predicted.float()), config, position)
        if index + 1 == per_epoch:
            position.history.append({"epoch": epoch, "loss": position.sums["loss"] / per_epoch})
            position.sums = {}
        progress(position.step, steps, loss)
        is_due = not position.sums or should_save()
        if checkpoint and is_due:
            save_checkpoint(checkpoint, run, trained, position)
    trained.use_average()
    modules.eval()
    return position.history


def pretext_digest(network: ChexRadiNet, data: PretextData, config: PretrainConfig) -> str:
    """Return the digest of a run: settings, initial weights, images and targets."""
    digest = hashlib.sha256(data.rows.tobytes())
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest_of(["pretext", config.record(), data.identity, digest.hexdigest()])


def _head(network: ChexRadiNet, data: PretextData, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(network.num_channels, _HEAD_CHANNELS, 1),
            nn.GELU(),
            nn.Conv2d(_HEAD_CHANNELS, data.num_targets, 1),
        )


def _descend(trained: Trained, total: Tensor, config: PretrainConfig, position: Position) -> float:
    """Do a step down the gradient, note it in `position`, and return its loss."""
    loss = float(total.detach())
    if not np.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {position.step + 1}; lower pretext_learning_rate (now "
            f"{config.pretext_learning_rate}), or look for broken images"
        )
    trained.optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    trained.optimizer.step()
    trained.scheduler.step()
    trained.follow(config.ema_decay, position.step)
    position.sums["loss"] = position.sums.get("loss", 0.0) + loss
    position.step += 1
    return loss


def _batch(
    data: PretextData,
    rows: NDArray[np.int64],
    config: PretrainConfig,
    step: int,
    stride: int,
    place: torch.device,
) -> _Batch:
    images = data.images(rows)
    shift = np.random.default_rng((config.seed, _SHIFT, step)).integers(-1, 2, (len(rows), 2))
    shifted, _ = shift_cells(images[:, None], shift, stride)
    inputs = normalise(torch.from_numpy(shifted[:, 0])).to(place)
    cells = np.ones((len(rows), 1, images.shape[1] // stride, images.shape[2] // stride))
    if data.targets is None:
        hidden = _hidden(config, step, cells.shape)
        found = nn.functional.pixel_unshuffle(inputs, stride)
        kept = torch.from_numpy(1 - hidden).float().to(place)
        shown = inputs * nn.functional.interpolate(kept, scale_factor=float(stride))
        return _Batch(shown, found, 1 - kept)
    targets, counted = shift_cells(data.targets(rows), shift, 1)
    return _Batch(
        inputs, torch.from_numpy(targets).to(place), torch.from_numpy(counted).float().to(place)
    )


def _hidden(config: PretrainConfig, step: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return 1 for hidden cells, in blocks of two by two; at least one cell per image."""
    generator = np.random.default_rng((config.seed, _MASK, step))
    number, _, height, width = shape
    blocks = (number, 1, -(-height // _MASK_CELLS), -(-width // _MASK_CELLS))
    hidden: NDArray[np.bool_] = generator.random(blocks) < config.masked_fraction
    hidden[:, :, 0, 0] |= ~np.any(hidden, axis=(1, 2, 3), keepdims=True)[:, :, 0, 0]
    wide = hidden.repeat(_MASK_CELLS, 2).repeat(_MASK_CELLS, 3)[:, :, :height, :width]
    return wide.astype(np.float64)


def shift_cells(
    values: NDArray[np.generic], shift: NDArray[np.int64], stride: int
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Shift each image down and right by its own number of cells; the border is repeated.

    Args:
        values: Pixels or cells, shape (n, D, H, W).
        shift: Cells down and right, shape (n, 2).
        stride: Pixels of a cell's side; 1 if the values are cells.

    Returns:
        The shifted values, and where they come from within the image, (n, 1, H, W).
    """
    number, _, height, width = values.shape
    down = np.arange(height) - stride * shift[:, :1]
    right = np.arange(width) - stride * shift[:, 1:]
    rows, columns = np.clip(down, 0, height - 1), np.clip(right, 0, width - 1)
    place = np.arange(number)[:, None, None]
    # Indexed axes around a slice come first: (n, H, W, D).
    moved = values[place, :, rows[:, :, None], columns[:, None, :]]
    inside = (down == rows)[:, :, None] & (right == columns)[:, None, :]
    return np.ascontiguousarray(np.moveaxis(moved, -1, 1)), inside[:, None]


def save_encoder(
    target: Path,
    network: ChexRadiNet,
    record: Mapping[str, Any],
    stages: Sequence[dict[str, Any]],
) -> str:
    """Write an encoder, whole or not at all; return its digest.

    Args:
        target: Directory to make; an older encoder there is replaced.
        network: Pre-trained, on any device, in any mode.
        record: What is said of it, JSON-ready; `preprocessing_digest` among it.
        stages: Records of the stages that led to it, from `model.bundle.provenance`.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if _is_encoder(name)
    }
    with writing_directory(target, ENCODER_HEAD) as folder:
        save_file(tensors, folder / _WEIGHTS_FILE)
        write_provenance(folder, stages)
        files = {_WEIGHTS_FILE: sha256_of(folder / _WEIGHTS_FILE)}
        content = {"network": network.config.record(), **record, "files": files}
        digest = digest_of(content)
        write_document(folder / ENCODER_FILE, KIND, SCHEMA, {**content, "digest": digest})
    return digest


def read_encoder(path: Path) -> dict[str, Any]:
    """Return what an encoder says of itself, after a comparison of its bytes with its digests.

    Raises:
        ArtifactError: a file is missing or changed.
    """
    document = read_document(path / ENCODER_FILE, KIND, SCHEMA)
    envelope = ("schema", "kind", "digest")
    content = {name: value for name, value in document.items() if name not in envelope}
    written = content.get("files", {}).get(_WEIGHTS_FILE)
    intact = document.get("digest") == digest_of(content)
    if not intact or sha256_of(path / _WEIGHTS_FILE) != written:
        raise ArtifactError(f"the encoder in {path} was changed; pre-train or copy it again")
    return {**content, "digest": document["digest"]}


def load_encoder(network: ChexRadiNet, path: Path, preprocessing_digest: str) -> dict[str, Any]:
    """Start a network from an encoder; its last layer keeps its values.

    Args:
        network: A network of the encoder's shape; changed in place.
        path: Directory that `save_encoder` wrote.
        preprocessing_digest: Digest for the images that the network will see.

    Returns:
        What the encoder says of itself.

    Raises:
        ArtifactError: a file is missing or changed, or the weights cannot be read.
        MismatchError: it is of another network or of other preprocessing.
    """
    record = read_encoder(path)
    needed = {
        "network": network.config.record(),
        "preprocessing_digest": preprocessing_digest,
    }
    for name, value in needed.items():
        if record.get(name) != value:
            raise MismatchError(
                f"the encoder in {path} has {name} {record.get(name)!r}, it must be {value!r}; "
                "pre-train one with the settings of this training"
            )
    own = {name for name in network.state_dict() if _is_encoder(name)}
    try:
        tensors = load_file(path / _WEIGHTS_FILE)
        if set(tensors) != own or not all(value.isfinite().all() for value in tensors.values()):
            raise RuntimeError("names differ, or a weight is NaN or infinite")
        network.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"the encoder in {path} does not hold the weights of {network.config} ({error}); "
            "pre-train it again"
        ) from error
    return record


def _is_encoder(name: str) -> bool:
    return not name.startswith("fc.")
