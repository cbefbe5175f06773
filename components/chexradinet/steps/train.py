"""Kubeflow component of `training.train`."""

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
    accelerator_type: str,
    accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train round 0 on image labels alone."""
    from pathlib import Path

    from chexradinet.config import Backbone, NetworkConfig, TrainConfig, choice
    from chexradinet.training.device import check_accelerator
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
