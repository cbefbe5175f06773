"""Kubeflow component of `training.rounds.radiomics`."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def radiomics(
    active: bool,
    settings: dict,  # type: ignore[type-arg]
    dataset: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
) -> None:
    """Write the 102 radiomics features of one shard's regions."""
    from pathlib import Path

    from chexradinet.training.rounds import skip

    if not active:
        skip(Path(features.path))
        return

    from chexradinet.config import RadiomicsConfig
    from chexradinet.monitoring import ProgressLog
    from chexradinet.training.rounds import radiomics

    given = RadiomicsConfig(**settings)
    radiomics(
        Path(dataset.path),
        Path(regions.path),
        Path(features.path),
        given,
        progress=ProgressLog("regions"),
    )
