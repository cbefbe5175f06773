"""Kubeflow component of `training.train`."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def train(
    settings: dict,  # type: ignore[type-arg]
    accelerator_type: str,
    accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train round 0 on image labels alone."""
    from pathlib import Path

    from chexradinet.config.parameters import RoundZero
    from chexradinet.training.device import num_processes
    from chexradinet.training.train import headline, train

    given = RoundZero(**settings)
    info = train(
        Path(dataset.path),
        Path(model.path),
        given.network,
        given.training,
        initial_weights=given.initial_weights,
        processes=num_processes(accelerator_type, accelerators),
        reuse=given.reuse,
        pretext=given.pretrain,
    )
    for name, value in headline(info).items():
        metrics.log_metric(name, value)
    model.metadata["round"] = 0
