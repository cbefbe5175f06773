"""Kubeflow component of `training.radiomics`."""

from kfp import dsl

from chexradinet.steps.worker import worker


@worker
def radiomics(
    active: bool,
    bin_width: float,
    dataset: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
) -> None:
    """Write the 102 radiomics features of one shard's regions."""
    from pathlib import Path

    from chexradinet.config import RadiomicsConfig
    from chexradinet.training.radiomics import radiomics, skip

    if not active:
        skip(Path(features.path))
        return
    radiomics(
        Path(dataset.path),
        Path(regions.path),
        Path(features.path),
        RadiomicsConfig(bin_width=bin_width),
    )
