"""Kubeflow component of `training.pretrain`."""

from kfp import dsl

from chexradinet.steps import worker


@worker
def pretrain(
    settings: dict,  # type: ignore[type-arg]
    accelerator_type: str,
    accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    encoder: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Pre-train an encoder on the training images, without their labels."""
    from pathlib import Path

    from chexradinet.config.parameters import Pretraining
    from chexradinet.training.device import check_accelerator
    from chexradinet.training.pretrain import pretrain

    check_accelerator(accelerator_type, accelerators)
    given = Pretraining(**settings)
    record = pretrain(Path(dataset.path), Path(encoder.path), given.network, given.pretrain)
    for source in record["sources"]:
        metrics.log_metric("images", float(source["images"]))
        metrics.log_metric("refused", float(sum(source["refused"].values())))
    if record["history"]:
        metrics.log_metric("loss", record["history"][-1]["loss"])
