"""Kubeflow component of `training.rounds.heatmap`."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def heatmap(
    shard: int,
    num_shards: int,
    active: bool,
    settings: dict,  # type: ignore[type-arg]
    accelerator_type: str,
    accelerators: str,
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    regions: dsl.Output[dsl.Dataset],
) -> None:
    """Write the regions that the model looked at in a shard of the training images."""
    from pathlib import Path

    from chexradinet.training.rounds import skip

    if not active:
        skip(Path(regions.path))
        return

    from chexradinet.config import RegionConfig
    from chexradinet.training.processes import check_accelerator
    from chexradinet.training.rounds import Shard, heatmap

    check_accelerator(accelerator_type, accelerators)
    part = Shard(int(shard), num_shards)
    regions_of = RegionConfig(**settings)
    heatmap(Path(model.path), Path(dataset.path), Path(regions.path), regions_of, part)
