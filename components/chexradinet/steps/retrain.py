"""Kubeflow component of `training.retrain`."""

from kfp import dsl

from chexradinet.steps.worker import worker


@worker
def retrain(
    round_number: int,
    active: bool,
    guidance: str,
    permute_radiomics: bool,
    sharpen_weight: float,
    contrastive_weight: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    min_improvement: float,
    accelerator_type: str,
    accelerators: str,
    previous: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> bool:
    """Train one guided round; return whether validation still improves.

    A closed round passes the previous model on, byte for byte.
    """
    from pathlib import Path

    from chexradinet.model.bundle_info import copy_bundle

    if not active:
        # Before torch is imported, which would be most of what a closed round costs.
        copy_bundle(Path(previous.path), Path(model.path))
        return False

    from chexradinet.config import (
        GuidanceConfig,
        GuidanceRecipe,
        TrainConfig,
        choice,
    )
    from chexradinet.training.device import check_accelerator
    from chexradinet.training.retrain import retrain
    from chexradinet.training.train import headline

    check_accelerator(accelerator_type, accelerators)
    outcome = retrain(
        Path(previous.path),
        Path(dataset.path),
        Path(features.path),
        Path(model.path),
        round_number=round_number,
        guidance=GuidanceConfig(
            guidance=choice(GuidanceRecipe, "guidance", guidance),
            permute_radiomics=permute_radiomics,
            sharpen_weight=sharpen_weight,
            contrastive_weight=contrastive_weight,
        ),
        config=TrainConfig(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed
        ),
        min_improvement=min_improvement,
    )
    for name, value in headline(outcome.info).items():
        metrics.log_metric(name, value)
    model.metadata["round"] = round_number
    return outcome.improved
