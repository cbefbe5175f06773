"""State of a training: weights, optimiser, averages, position. Stored as safetensors and JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from chexradinet.artifacts import Head, read_document, sha256_of, write_document, writing_directory
from chexradinet.config import TrainConfig
from chexradinet.errors import ArtifactError, MismatchError

WARM_UP_FRACTION = 0.2
"""Part of the one-cycle schedule in which the learning rate rises."""
KIND = "training-checkpoint"
SCHEMA = 1
_STATE_FILE = "state.safetensors"
POSITION_FILE = "position.json"


@dataclass
class Position:
    """How far a training has come."""

    step: int = 0
    """Steps done, over all epochs."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Records of the finished epochs, as `fit` returns them."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses over the steps of the epoch that is not finished."""


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes."""

    modules: nn.ModuleDict
    """Network and heads."""
    optimizer: Optimizer
    scheduler: LRScheduler
    average: dict[str, Tensor] = field(default_factory=dict)
    """Moving averages of the floating-point weights, by name; empty if none are kept."""

    def follow(self, decay: float, step: int) -> None:
        """Move the averages towards the weights; early ones follow faster, to forget the start."""
        if self.average:
            state = self.modules.state_dict()
            current = [state[name] for name in self.average]
            weight = 1 - min(decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.average.values()), current, weight)

    def use_average(self) -> None:
        """Let the averages be the weights, if there are any."""
        self.modules.load_state_dict(self.average, strict=False)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the averages be the weights until the block ends."""
        state = self.modules.state_dict()
        before = {name: state[name].clone() for name in self.average}
        self.use_average()
        try:
            yield
        finally:
            self.modules.load_state_dict(before, strict=False)


def prepared(
    modules: nn.ModuleDict, config: TrainConfig, steps: int, place: torch.device
) -> Trained:
    """Return the state of a training at its start: AdamW on a one-cycle schedule.

    Args:
        modules: Network and heads, on the device.
        config: How to train.
        steps: Optimisation steps of the whole training.
        place: The device.
    """
    # On a CPU a fused step rounds otherwise than the plain one, by which earlier runs were made.
    groups = _parameter_groups(modules, config)
    optimizer = torch.optim.AdamW(
        groups,
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=place.type == "cuda",
    )
    # The schedule divides by the length of its warm-up less one step, so that may not be 0.
    warm_up = max(WARM_UP_FRACTION, 1.5 / steps) if steps > 1 else WARM_UP_FRACTION
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps, pct_start=warm_up
    )
    state = modules.state_dict() if config.ema_decay else {}
    average = {name: value.clone() for name, value in state.items() if value.is_floating_point()}
    return Trained(modules, optimizer, scheduler, average)


def _parameter_groups(modules: nn.ModuleDict, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameters by peak learning rate: one group, or two if the last layer has its own.

    Frozen parameters are in them, but have no gradient, so no step changes them.
    """
    if not config.head_learning_rate:
        return [{"params": list(modules.parameters()), "lr": config.learning_rate}]
    names = [name for name, _ in modules.named_parameters()]
    own = [name.startswith("network.fc.") for name in names]
    rates = ((False, config.learning_rate), (True, config.head_learning_rate))
    return [
        {
            "params": [
                p for p, is_head in zip(modules.parameters(), own, strict=True) if is_head is of
            ],
            "lr": rate,
        }
        for of, rate in rates
    ]


def save_checkpoint(target: Path, run: str, trained: Trained, position: Position) -> None:
    """Write the state, whole or not at all.

    Args:
        target: Directory to make or replace.
        run: Digest of settings, data and initial weights; only the same run may continue from it.
        trained: Modules, optimiser and schedule.
        position: How far they have come.
    """
    optimizer = trained.optimizer.state_dict()
    tensors = {f"modules.{name}": value for name, value in trained.modules.state_dict().items()}
    for index, moments in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    tensors |= {f"average.{name}": value for name, value in trained.average.items()}
    with writing_directory(target, Head(POSITION_FILE, KIND)) as folder:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / _STATE_FILE
        )
        content = {
            "run": run,
            "sha256": sha256_of(folder / _STATE_FILE),
            "groups": optimizer["param_groups"],
            "schedule": trained.scheduler.state_dict(),
            "step": position.step,
            "history": position.history,
            "sums": position.sums,
        }
        write_document(folder / POSITION_FILE, KIND, SCHEMA, content)


def load_checkpoint(source: Path, run: str, trained: Trained) -> Position:
    """Bring a training back to where a checkpoint left it; without a checkpoint, to its start.

    Args:
        source: Directory that `save_checkpoint` made, or one that does not exist yet.
        run: As given to `save_checkpoint`.
        trained: Changed in place.

    Raises:
        MismatchError: the checkpoint is of another run.
        ArtifactError: it is incomplete or changed.
    """
    if not source.exists():
        return Position()
    document = read_document(source / POSITION_FILE, KIND, SCHEMA)
    if document["run"] != run:
        raise MismatchError(
            f"{source} is the checkpoint of another run: settings, data or initial weights differ; "
            "remove it to start afresh, or continue with what it was made from"
        )
    path = source / _STATE_FILE
    if sha256_of(path) != document["sha256"]:
        raise ArtifactError(f"{path} was changed; remove {source} to start over")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path} cannot be read ({error}); remove {source}") from error
    _restore(trained, tensors, document)
    return Position(document["step"], document["history"], document["sums"])


def _restore(trained: Trained, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    modules: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        owner, rest = name.split(".", 1)
        if owner == "modules":
            modules[rest] = value
        elif owner == "average":
            trained.average[rest].copy_(value)
        else:
            index, moment = rest.split(".")
            moments.setdefault(int(index), {})[moment] = value
    trained.modules.load_state_dict(modules)
    # Whether the step is fused depends on where it is done now, not on where the state comes from.
    own = trained.optimizer.param_groups
    groups = [
        {**kept, "fused": group["fused"]}
        for kept, group in zip(document["groups"], own, strict=True)
    ]
    trained.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    trained.scheduler.load_state_dict(document["schedule"])
