"""The training loop of round 0 and of every guided round.

Nothing in it waits for an accelerator but every `SYNC_STEPS` steps, where the loss is read: for the
progress, and to end a run whose loss is not finite before a state of it is kept.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from chexradinet.config import GuidanceConfig, TrainConfig, digest_of
from chexradinet.errors import ConfigError, Interrupted, TrainingError
from chexradinet.model.batches import (
    Batches,
    Part,
    Regions,
    TrainingData,
    num_batches,
    permuted,
)
from chexradinet.model.checkpoint import (
    Position,
    Trained,
    load_checkpoint,
    prepared,
    save_checkpoint,
)
from chexradinet.model.distributed import Ranks, synchronised_norms
from chexradinet.model.inference import choose_device
from chexradinet.model.losses import GuidanceHeads, guided_loss
from chexradinet.model.resnet import ChexRadiNet, Prediction
from chexradinet.monitoring import ProgressLog

_log = logging.getLogger(__name__)

SYNC_STEPS = {"cpu": 1, "cuda": 50}
"""Steps between two looks at the loss, by kind of device."""


class _Callbacks(NamedTuple):
    """What a training asks and tells its caller; see `fit`."""

    progress: Callable[[int, int, float], None] | None
    should_stop: Callable[[], bool] | None
    should_save: Callable[[], bool] | None
    validate: Callable[[], float | None] | None


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
    validate: Callable[[], float | None] | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Train in place; the network and the heads end in evaluation mode, on the device.

    On a CPU, equal arguments give equal weights, to the bit with one thread. In a process group,
    all processes call this with equal arguments; the first of them writes the state.

    Args:
        network: Trained on from the weights it has.
        heads: Needed by a contrastive recipe; trained with the network, untouched otherwise.
        data: Images and labels.
        config: Schedule, augmentation and seed.
        guidance: Recipe; `none` is classification alone.
        regions: Needed by a contrastive recipe. Shuffled here if `guidance` says so.
        progress: Called with steps done, steps in all, and the loss, each time the loss is read.
        checkpoint: Directory for the state after each epoch. If it exists, training continues from
            it exactly; it stays when training is done, and belongs to the caller.
        should_stop: Asked before each step; by several processes, each time the loss is read.
        should_save: Asked after each step within an epoch: write the state already now?
        validate: Returns the validation mean AUROC of the network as it is, None if undefined.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        A record per epoch: `epoch` from 0, the mean `loss`, the means of its `parts`
        (`classification`; `entropy` and `contrastive` if they take part), the `learning_rate` at
        its end, and `val_mean_auroc`, None unless it was validated.

    Raises:
        TrainingError: no training image has a label, or the loss is not finite.
        ConfigError: a contrastive recipe without heads or regions, or too few images per process.
        Interrupted: `should_stop` said so; the state is in `checkpoint`.
        MismatchError: `checkpoint` is of another run.
    """
    ranks, place = Ranks.current(), choose_device(device)
    _check(data, config, guidance, heads, regions, ranks)
    heads = heads if guidance.contrasts else None
    modules = _modules(network, heads)
    run = _fingerprint(modules, data, regions, config, guidance)
    if regions is not None and guidance.permute_radiomics:
        regions = replace(regions, features=permuted(regions.features, config.seed))
    modules.to(place).to(memory_format=torch.channels_last).train()
    steps = config.epochs * num_batches(len(data.rows), config.batch_size)
    trained = prepared(modules, config, steps, place)
    with ExitStack() as stack:
        stack.enter_context(_threads(config.num_threads))
        if ranks.size > 1 and config.sync_batch_norm:
            stack.enter_context(synchronised_norms(network, place))
        position = load_checkpoint(checkpoint, run, trained) if checkpoint else Position()
        batches = Batches(data, regions, config, place, ranks)
        callbacks = _Callbacks(progress, should_stop, should_save, validate)
        loop = _Loop(network, heads, trained, batches, guidance, steps, position, callbacks)
        loop.run(run, checkpoint)
    trained.use_average()
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
    position: Position
    callbacks: _Callbacks
    _sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the unfinished epoch, in float64 on the device; `position` has them when read."""
    _loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        config, place = self.batches.config, self.batches.device
        self._per_epoch = self.num_steps // config.epochs
        self._interval = SYNC_STEPS[place.type]
        self._speaks = self.batches.ranks.is_writer
        for name, value in self.position.sums.items():
            self._sums[name] = torch.tensor(value, dtype=torch.float64, device=place)
        self._forward: nn.Module = self.network
        if self.batches.ranks.size > 1:
            self._forward = DistributedDataParallel(
                self.network, broadcast_buffers=not config.sync_batch_norm
            )
        if config.compile_network:
            self._forward = torch.compile(self._forward)  # type: ignore[assignment]

    def run(self, run: str, checkpoint: Path | None) -> None:
        """Do the steps that are left, keep the state on the way, and log how it goes."""

        def save() -> None:
            self._look(force=True)
            if checkpoint and self._speaks:
                save_checkpoint(checkpoint, run, self.trained, self.position)

        pace = _Pace(self.position.step)
        ask = self.callbacks.should_save
        steps = self.batches.from_step(self.position.step)
        try:
            while self.position.step < self.num_steps:
                if self._is_stopped():
                    save()
                    raise Interrupted(_interruption(self.position.step, self.num_steps, checkpoint))
                parts = next(steps)
                self._step(parts)
                pace.images += parts[0][0].batch_size
                if self.position.step % self._per_epoch == 0:
                    self._end_epoch(pace)
                    save()
                else:
                    self._look()
                    self._say_progress(pace)
                    if ask is not None and ask():
                        save()
        finally:
            steps.close()

    def _is_stopped(self) -> bool:
        ask, ranks = self.callbacks.should_stop, self.batches.ranks
        if ask is None:
            return False
        if ranks.size == 1:
            return ask()
        return self.position.step % self._interval == 0 and ranks.agree(ask(), self.batches.device)

    def _step(self, parts: list[tuple[Part, Tensor]]) -> None:
        """Do the step that comes next, without waiting for the device."""
        losses: dict[str, Tensor] = {}
        self.trained.optimizer.zero_grad()
        for number, (part, images) in enumerate(parts, 1):
            share = len(part.rows) / part.batch_size
            with self._gathering(number == len(parts)):
                total, found = self._losses(part, images)
                (total if share == 1 else total * share).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": total.detach(), **found}.items():
                losses[name] = losses.get(name, 0.0) + value.double() * share
        if self.heads is not None:
            self.batches.ranks.average_gradients(self.heads)
        self.trained.optimizer.step()
        self.trained.scheduler.step()
        self.trained.follow(self.batches.config.ema_decay, self.position.step)
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._loss = losses["loss"]
        self.position.step += 1

    def _gathering(self, is_last: bool) -> Any:  # noqa: ANN401
        """Let processes exchange gradients in the last part only."""
        if is_last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def _losses(self, part: Part, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        place = self.batches.device
        mixed = self.batches.config.mixed_precision and place.type == "cuda"
        with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
            own: Prediction = self._forward(self.batches.input(part, images))
        prediction = self.batches.ranks.joined(own, len(part.rows))
        pairs = self.batches.pairs(part, prediction.embedding, self.heads)
        return guided_loss(prediction, self.batches.labels(part), self.guidance, pairs)

    def _look(self, force: bool = False) -> None:
        """Read the loss every few steps; end the training if it left the finite numbers."""
        step = self.position.step
        if not force and step % self._interval:
            return
        self.position.sums = {name: float(value) for name, value in self._sums.items()}
        # A sum that was not finite once stays so.
        if not np.isfinite(self.position.sums.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is {float(self._loss)} at step {step} of {self.num_steps}; lower "
                f"learning_rate (now {self.batches.config.learning_rate}), or look for broken "
                "images or labels"
            )
        if self.callbacks.progress and self._speaks and not force:
            self.callbacks.progress(step, self.num_steps, float(self._loss))

    def _end_epoch(self, pace: "_Pace") -> None:
        """Note the means of an epoch and log them."""
        self._look(force=True)
        if self.callbacks.progress and self._speaks:
            self.callbacks.progress(self.position.step, self.num_steps, float(self._loss))
        epoch = self.position.step // self._per_epoch - 1
        means = {name: value / self._per_epoch for name, value in self.position.sums.items()}
        self.position.sums, self._sums = {}, {}
        record = {
            "epoch": epoch,
            "loss": means.pop("loss"),
            "parts": means,
            "learning_rate": self.trained.scheduler.get_last_lr()[0],
            "val_mean_auroc": self._validated(epoch),
        }
        self.position.history.append(record)
        if self._speaks:
            _log.info(
                "epoch %d of %d: step %d of %d, loss %.4f (%s), learning rate %.2e, "
                "%.0f images/s, validation mean AUROC %s",
                epoch + 1,
                self.batches.config.epochs,
                self.position.step,
                self.num_steps,
                record["loss"],
                ", ".join(f"{name} {value:.4f}" for name, value in means.items()),
                record["learning_rate"],
                pace.images_per_s(),
                "not asked for" if record["val_mean_auroc"] is None else record["val_mean_auroc"],
            )

    def _validated(self, epoch: int) -> float | None:
        every, validate = self.batches.config.validate_every, self.callbacks.validate
        if not every or (epoch + 1) % every or validate is None or not self._speaks:
            return None
        with self.trained.averaged():
            self.network.eval()
            found = validate()
            self.network.train()
        return found

    def _say_progress(self, pace: "_Pace") -> None:
        if self._speaks and pace.is_due():
            loss = float(self._loss)
            _log.info(
                "step %d of %d: loss %.4f, learning rate %.2e, %.0f images/s",
                self.position.step,
                self.num_steps,
                loss,
                self.trained.scheduler.get_last_lr()[0],
                pace.images_per_s(),
            )


class _Pace:
    """Images per second since the last line of the log."""

    def __init__(self, images: int) -> None:
        self.images = 0
        self.is_due = ProgressLog().is_due
        self._since = time.monotonic()

    def images_per_s(self) -> float:
        """Return the pace and start again."""
        now = time.monotonic()
        found = self.images / max(now - self._since, 1e-9)
        self.images, self._since = 0, now
        return found


def _modules(network: ChexRadiNet, heads: GuidanceHeads | None) -> nn.ModuleDict:
    return nn.ModuleDict({"network": network} | ({"heads": heads} if heads else {}))


def _check(
    data: TrainingData,
    config: TrainConfig,
    guidance: GuidanceConfig,
    heads: GuidanceHeads | None,
    regions: Regions | None,
    ranks: Ranks,
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
    smallest = len(labels) // num_batches(len(labels), config.batch_size)
    if ranks.size > 1 and smallest // config.accumulation < ranks.size:
        raise ConfigError(
            f"batches of {smallest} images in {config.accumulation} parts are too small for "
            f"{ranks.size} processes; raise batch_size or ask for fewer accelerators"
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
    state = (
        f"its state is in {checkpoint}: run again to continue" if checkpoint else "nothing is kept"
    )
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
