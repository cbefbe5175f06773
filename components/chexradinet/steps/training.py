"""Kubeflow component of `training.retrain`."""

from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.steps import worker


@worker
def retrain(
    round_number: int,
    rounds: int,
    active: bool,
    arm: str,
    settings: dict,  # type: ignore[type-arg]
    num_shards: int,
    accelerator_type: str,
    accelerators: str,
    previous: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    features: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple(  # type: ignore[valid-type]
    "Retrained",
    [
        ("active", bool),
        ("shards", List[int]),  # noqa: UP006
        ("accelerators", str),
        ("single_accelerator", str),
    ],
):
    """Train one arm of a round, and open the next round if validation still improves.

    A closed round copies the previous model, byte for byte.
    """
    import tempfile
    from pathlib import Path

    from chexradinet.model import copy_bundle
    from chexradinet.training.rounds import open_round

    if not active:
        # Before torch is imported, which would be most of what a closed round costs.
        copy_bundle(Path(previous.path), Path(model.path))
        return open_round(round_number + 1, rounds, False, num_shards, accelerators)

    from chexradinet.config import GuidanceRecipe, RetrainConfig
    from chexradinet.config.parameters import TrainingPlacement
    from chexradinet.monitoring import PaceKeeper
    from chexradinet.training.processes import num_processes
    from chexradinet.training.train import headline, retrain

    place = TrainingPlacement(**settings.pop("nodes")) if "nodes" in settings else None
    given = RetrainConfig(**settings)
    config = given.training()
    with tempfile.TemporaryDirectory() as folder:
        pace = PaceKeeper(config.batch_size, Path(folder) / "pace")
        outcome = retrain(
            Path(previous.path),
            Path(dataset.path),
            [Path(shard.path) for shard in features],
            Path(model.path),
            round_number=round_number,
            guidance=given.guidance.changed(
                guidance=GuidanceRecipe.NONE if arm == "control" else given.guidance.guidance,
                permute_radiomics=arm == "permuted",
            ),
            config=config,
            min_improvement=given.min_improvement,
            progress=pace,
            processes=num_processes(accelerator_type, accelerators),
            nodes=place,
            reuse=given.reuse,
        )
        figures = headline(outcome.info, pace.images_per_s())
    for name, value in figures.items():
        metrics.log_metric(name, value)
    model.metadata["round"] = round_number
    of_node = str(place.accelerator_count) if place else ""
    improved = outcome.improved
    return open_round(round_number + 1, rounds, improved, num_shards, accelerators, of_node)
