"""What a node of a TrainJob runs, once per process: `torchrun -m chexradinet.training.node JSON`.

The launcher reads what Trainer puts into the environment (`PET_NNODES`, `PET_NODE_RANK`, ...). The
first process of a node fetches the inputs from the store for all of them; the first of all keeps
the model there.
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import distributed

from chexradinet.config import GuidanceConfig, NetworkConfig, TrainConfig
from chexradinet.dataset import DATASET_HEAD
from chexradinet.errors import StoreNotFoundError
from chexradinet.model import BUNDLE_HEAD
from chexradinet.model.distributed import Ranks
from chexradinet.regions import FEATURES_HEAD
from chexradinet.store import FinishedWork
from chexradinet.training.processes import join_group
from chexradinet.training.train import retrain_here, train_here

_HEADS = {"dataset": DATASET_HEAD, "bundle": BUNDLE_HEAD, "features": FEATURES_HEAD}
_MODELS = {"network": NetworkConfig, "config": TrainConfig, "guidance": GuidanceConfig}


def _work_on(program: dict[str, Any]) -> None:
    """Do this process's part of a training.

    Args:
        program: As `training.nodes` writes it.
    """
    folder = Path(tempfile.gettempdir()) / f"chexradinet-{program['work'][:12]}"
    inputs = {name: folder / name for name in program["inputs"]}
    if os.environ["LOCAL_RANK"] == "0":
        folder.mkdir(exist_ok=True)
        for name, digest in program["inputs"].items():
            _fetch(name, digest, inputs[name])
    distributed.barrier()
    settings = {
        name: _MODELS[name](**value) if name in _MODELS else value
        for name, value in program["settings"].items()
    }
    given: dict[str, Any] = {**inputs, **settings, "target": folder / "model"}
    if program["stage"] == "train":
        train_here(**given)
    else:
        shards = [given.pop(name) for name in inputs if name.startswith("features")]
        retrain_here(features=shards, **given)
    if Ranks.current().is_writer:
        FinishedWork(program["stage"], program["work"], reuse=True).keep(folder / "model")


def _fetch(name: str, digest: str, target: Path) -> None:
    if not FinishedWork(name, digest, reuse=True).take(target, _HEADS[name.partition("-")[0]]):
        raise StoreNotFoundError(
            f"the {name} that the step shared is not there, or not whole; run again to share it"
        )


if __name__ == "__main__":
    join_group(logging.INFO, _work_on, json.loads(sys.argv[1]))
