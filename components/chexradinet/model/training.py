"""The training loop of round 0 and of every guided round."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chexradinet.config import GuidanceConfig, TrainConfig, digest_of
from chexradinet.errors import ConfigError, Interrupted, TrainingError
from chexradinet.model.batches import Batches, epoch_batches, num_batches, permuted
from chexradinet.model.batches import Regions as Regions
from chexradinet.model.batches import TrainingData as TrainingData
from chexradinet.model.checkpoint import Position, Trained, load_checkpoint, save_checkpoint
from chexradinet.model.inference import choose_device
from chexradinet.model.losses import GuidanceHeads, guided_loss
from chexradinet.model.resnet import ChexRadiNet

WARM_UP_FRACTION = 0.2
"""Part of the one-cycle schedule in which the learning rate rises."""


def fit(
    network: ChexRadiNet,
    heads: GuidanceHeads | None,
    data: TrainingData,
    config: TrainConfig,
    guidance: GuidanceConfig,
    *,
    regions: Regions | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    checkpoint: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
    should_save: Callable[[], bool] | None = None,
    device: str = "auto",
) -> list[dict[str, float]]:
    """Train in place; the network and the heads end in evaluation mode, on the device.

    On a CPU, equal arguments give equal weights, to the bit with one thread.

    Args:
        network: Trained on from the weights it has.
        heads: Needed by a contrastive recipe; trained with the network, untouched otherwise.
        data: Images and labels.
        config: Schedule, augmentation and seed.
        guidance: Recipe; `none` is classification alone.
        regions: Needed by a contrastive recipe. Shuffled here where `guidance` says so.
        progress: Called after each step with steps done, steps in all, and the loss.
        checkpoint: Directory for the state after each epoch. Where it exists, training goes on from
            it exactly; it stays when training is done, and belongs to the caller.
        should_stop: Asked before each step.
        should_save: Asked after each step within an epoch: write the state already now?
        device: `auto`, `cpu` or `cuda`.

    Returns:
        A record for each epoch: `epoch` and the means of `loss`, `classification`, and of `entropy`
        and `contrastive` where they take part.

    Raises:
        TrainingError: no training image has a label, or the loss is not finite.
        ConfigError: a contrastive recipe without heads or regions.
        Interrupted: `should_stop` said so; the state is in `checkpoint`.
        MismatchError: `checkpoint` is of another run.
    """
    _check(data, guidance, heads, regions)
    place = choose_device(device)
    heads = heads if guidance.contrasts else None
    modules = _modules(network, heads)
    run = _fingerprint(modules, data, regions, config, guidance)
    if regions is not None and guidance.permute_radiomics:
        regions = replace(regions, features=permuted(regions.features, config.seed))
    modules.to(place).to(memory_format=torch.channels_last).train()
    steps = config.epochs * num_batches(len(data.rows), config.batch_size)
    trained = _prepared(modules, config, steps)
    with _threads(config.num_threads):
        position = load_checkpoint(checkpoint, run, trained) if checkpoint else Position()
        batches = Batches(data, regions, config, place)
        loop = _Loop(network, heads, trained, batches, guidance, steps)
        while position.step < steps:
            if should_stop is not None and should_stop():
                if checkpoint:
                    save_checkpoint(checkpoint, run, trained, position)
                raise Interrupted(_interruption(position.step, steps, checkpoint))
            loss = loop.step(position)
            if progress:
                progress(position.step, steps, loss)
            epoch_is_over = not position.sums
            if checkpoint and (epoch_is_over or (should_save is not None and should_save())):
                save_checkpoint(checkpoint, run, trained, position)
    modules.eval()
    return position.history


def run_digest(
    network: ChexRadiNet,
    heads: GuidanceHeads | None,
    data: TrainingData,
    config: TrainConfig,
    guidance: GuidanceConfig,
    regions: Regions | None = None,
) -> str:
    """Return the digest by which `fit` knows a run, from the arguments that `fit` will be given.

    Equal runs have equal digests: settings, initial weights, labels and regions enter, and of the
    images their number.
    """
    modules = _modules(network, heads if guidance.contrasts else None)
    return _fingerprint(modules, data, regions, config, guidance)


@dataclass
class _Loop:
    """One optimisation step after another."""

    network: ChexRadiNet
    heads: GuidanceHeads | None
    trained: Trained
    batches: Batches
    guidance: GuidanceConfig
    num_steps: int

    def step(self, position: Position) -> float:
        """Do the step that comes next, note it in `position`, and return its loss."""
        config = self.batches.config
        per_epoch = self.num_steps // config.epochs
        epoch, index = divmod(position.step, per_epoch)
        rows = epoch_batches(self.batches.data.rows, config, epoch)[index]
        total, parts = self._loss(rows, position.step)
        loss = float(total.detach())
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {position.step + 1} of {self.num_steps}; lower "
                f"learning_rate (now {config.learning_rate}), or look for broken images or labels"
            )
        self.trained.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.trained.optimizer.step()
        self.trained.scheduler.step()
        for name, value in {"loss": total.detach(), **parts}.items():
            position.sums[name] = position.sums.get(name, 0.0) + float(value)
        position.step += 1
        if index + 1 == per_epoch:
            means = {name: value / per_epoch for name, value in position.sums.items()}
            position.history.append({"epoch": epoch, **means})
            position.sums = {}
        return loss

    def _loss(self, rows: NDArray[np.int64], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        place = self.batches.device
        images = self.batches.images(rows, step)
        mixed = self.batches.config.mixed_precision and place.type == "cuda"
        with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
            prediction = self.network(images)
        pairs = self.batches.pairs(rows, prediction.embedding, self.heads)
        return guided_loss(prediction, self.batches.labels(rows), self.guidance, pairs)


def _modules(network: ChexRadiNet, heads: GuidanceHeads | None) -> nn.ModuleDict:
    return nn.ModuleDict({"network": network} | ({"heads": heads} if heads else {}))


def _prepared(modules: nn.ModuleDict, config: TrainConfig, steps: int) -> Trained:
    optimizer = torch.optim.AdamW(
        modules.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    # The schedule divides by the length of its warm-up less one step, so that may not be 0.
    warm_up = max(WARM_UP_FRACTION, 1.5 / steps) if steps > 1 else WARM_UP_FRACTION
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=warm_up
    )
    return Trained(modules, optimizer, scheduler)


def _check(
    data: TrainingData,
    guidance: GuidanceConfig,
    heads: GuidanceHeads | None,
    regions: Regions | None,
) -> None:
    labels = data.labels[data.rows]
    if np.isnan(labels).all():
        raise TrainingError(
            f"none of the {len(labels)} training images has a known label; check the label table "
            "and the split"
        )
    if guidance.contrasts and (heads is None or regions is None):
        raise ConfigError(
            f"recipe is {guidance.guidance.value!r}, which needs heads and regions; pass both or "
            "choose 'none' or 'sharpen'"
        )


def _fingerprint(
    modules: nn.ModuleDict,
    data: TrainingData,
    regions: Regions | None,
    config: TrainConfig,
    guidance: GuidanceConfig,
) -> str:
    digest = hashlib.sha256()
    arrays: list[NDArray[Any]] = [data.labels, data.rows]
    if regions is not None:
        arrays += [regions.image_row, regions.features]
    for array in arrays:
        digest.update(array.tobytes())
    for name, value in modules.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest_of([config.record(), guidance.record(), digest.hexdigest()])


def _interruption(step: int, steps: int, checkpoint: Path | None) -> str:
    state = f"its state is in {checkpoint}: run again to go on" if checkpoint else "nothing is kept"
    return f"training was interrupted after step {step} of {steps}; {state}"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Use a number of torch threads, 0 for as many as before, and restore what was."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
