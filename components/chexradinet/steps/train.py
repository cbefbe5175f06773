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
    import tempfile
    from pathlib import Path

    from chexradinet.config.parameters import RoundZero, TrainingPlacement
    from chexradinet.monitoring import PaceKeeper
    from chexradinet.training.processes import num_processes
    from chexradinet.training.train import headline, train

    place = TrainingPlacement(**settings.pop("nodes")) if "nodes" in settings else None
    given = RoundZero(**settings)
    with tempfile.TemporaryDirectory() as folder:
        pace = PaceKeeper(given.training.batch_size, Path(folder) / "pace")
        info = train(
            Path(dataset.path),
            Path(model.path),
            given.network,
            given.training,
            initial_weights=given.initial_weights,
            progress=pace,
            processes=num_processes(accelerator_type, accelerators),
            nodes=place,
            reuse=given.reuse,
            pretext=given.pretrain,
        )
        figures = headline(info, pace.images_per_s())
    for name, value in figures.items():
        metrics.log_metric(name, value)
    model.metadata["round"] = 0
