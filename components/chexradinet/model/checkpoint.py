"""State of an unfinished training: weights, optimiser, position. Safetensors and JSON only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from chexradinet.artifacts import Head, read_document, sha256_of, write_document, writing_directory
from chexradinet.errors import ArtifactError, MismatchError

KIND = "training-checkpoint"
SCHEMA = 1
_STATE_FILE = "state.safetensors"
POSITION_FILE = "position.json"


@dataclass
class Position:
    """How far a training has come."""

    step: int = 0
    """Steps done, over all epochs."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Mean losses of the finished epochs."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses over the steps of the epoch that is not finished."""


@dataclass(frozen=True)
class Trained:
    """Everything that a step changes."""

    modules: nn.ModuleDict
    """Network and heads."""
    optimizer: Optimizer
    scheduler: LRScheduler


def save_checkpoint(target: Path, run: str, trained: Trained, position: Position) -> None:
    """Write the state, whole or not at all.

    Args:
        target: Directory to make or replace.
        run: Digest of settings, data and initial weights; only the same run may go on from it.
        trained: Modules, optimiser and schedule.
        position: How far they have come.
    """
    optimizer = trained.optimizer.state_dict()
    tensors = {f"modules.{name}": value for name, value in trained.modules.state_dict().items()}
    for index, moments in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
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
            "remove it to start anew, or go on with what it was made from"
        )
    path = source / _STATE_FILE
    if sha256_of(path) != document["sha256"]:
        raise ArtifactError(f"{path} was changed; remove {source} to start anew")
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
        else:
            index, moment = rest.split(".")
            moments.setdefault(int(index), {})[moment] = value
    trained.modules.load_state_dict(modules)
    trained.optimizer.load_state_dict({"state": moments, "param_groups": document["groups"]})
    trained.scheduler.load_state_dict(document["schedule"])
