"""A tiny data set and a tiny model, made once by the flows themselves."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chexradinet.config import (
    Backbone,
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    TrainConfig,
)

TINY_NETWORK = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)
TINY_TRAINING = TrainConfig(epochs=1, batch_size=16, learning_rate=2e-3, seed=5, num_threads=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one torch thread if torch is loaded: equal runs give equal bytes, cores stay free."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 72 phantom X-rays of 64 px, 48 of them for training."""
    from chexradinet.ingest.ingest import ingest
    from chexradinet.phantom import write_phantom

    folder = tmp_path_factory.mktemp("tiny")
    write_phantom(folder / "source", 72, 96, seed=3)
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=64), ingest_workers=1)
    ingest(str(folder / "source"), folder / "dataset", config)
    return folder / "dataset"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """Return a bundle of round 0, trained for one epoch on the tiny data set."""
    from chexradinet.training.train import train

    target = tmp_path_factory.mktemp("model") / "round-0"
    train(tiny_dataset, target, TINY_NETWORK, TINY_TRAINING)
    return target
