"""Kubeflow component of `training.train`."""

from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.steps.worker import worker


@worker
def train(
    backbone: str,
    map_stride: int,
    initial_weights: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    rounds: int,
    train_images: int,
    num_shards: int,
    max_shards: int,
    accelerator_type: str,
    accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple(  # type: ignore[valid-type]
    "Trained",
    [
        ("active", bool),
        ("shards", List[int]),  # noqa: UP006
        ("accelerators", str),
        ("num_shards", int),
    ],
):
    """Train round 0 on image labels alone, and open or close round 1."""
    from pathlib import Path

    from chexradinet.config import Backbone, NetworkConfig, TrainConfig, choice
    from chexradinet.training.device import check_accelerator
    from chexradinet.training.rounds import open_round, shards_for
    from chexradinet.training.train import headline, train

    check_accelerator(accelerator_type, accelerators)
    info = train(
        Path(dataset.path),
        Path(model.path),
        NetworkConfig(backbone=choice(Backbone, "backbone", backbone), map_stride=map_stride),
        TrainConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed),
        initial_weights=initial_weights,
    )
    for name, value in headline(info).items():
        metrics.log_metric(name, value)
    model.metadata["round"] = 0
    chosen = shards_for(train_images, num_shards, max_shards)
    return (*open_round(1, rounds, True, chosen, accelerators), chosen)
