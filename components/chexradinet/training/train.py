"""Round 0: a classifier trained on image labels alone."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chexradinet.artifacts import require_replaceable
from chexradinet.config import (
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    TrainConfig,
    digest_of,
)
from chexradinet.dataset.dataset import Dataset, open_dataset
from chexradinet.evaluation.evaluator import validate
from chexradinet.model.bundle import BUNDLE_HEAD, BundleInfo, model_card, save_bundle
from chexradinet.model.losses import build_heads
from chexradinet.model.resnet import ChexRadiNet, build_network, load_imagenet_weights
from chexradinet.model.training import TrainingData, fit, run_digest
from chexradinet.monitoring import ProgressReporter, timed_stage
from chexradinet.records import Split
from chexradinet.store.opening import open_object
from chexradinet.training.preemption import safeguard

Progress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the loss."""


@timed_stage("train")
def train(
    dataset: Path,
    target: Path,
    network: NetworkConfig,
    config: TrainConfig,
    initial_weights: str = "",
    progress: Progress | None = None,
) -> BundleInfo:
    """Train round 0 and write its bundle.

    Args:
        dataset: Directory that `ingest` wrote.
        target: Bundle directory to make.
        network: Shape of the classifier.
        config: How to train it.
        initial_weights: Path or URI of a torchvision state dict of the same depth; empty starts
            at random.
        progress: Called after each step.

    Raises:
        ConfigError: `target` holds something else than a bundle, or cannot be made.
        ArtifactError: the data set or the weights cannot be read.
        TrainingError: there is no labelled training image, or the loss left the finite numbers.
        Interrupted: the process was asked to end; the message says where its state is.
    """
    require_replaceable(target, BUNDLE_HEAD)
    data = open_dataset(dataset)
    classifier = build_network(network, len(data.info.findings), seed=config.seed)
    if initial_weights:
        _load_weights(classifier, initial_weights)
    heads = build_heads(classifier.num_channels, seed=config.seed)
    guidance = GuidanceConfig(guidance=GuidanceRecipe.NONE)
    parts = (classifier, heads, training_data(data), config, guidance)
    run = digest_of(["train", data.digest, network.record(), run_digest(*parts)])
    with safeguard(run) as guard:
        history = fit(
            *parts,
            progress=ProgressReporter(progress),
            checkpoint=guard.checkpoint,
            should_stop=guard.should_stop,
            should_save=guard.should_save,
        )
        guard.trained()
        validation = validate(classifier, data)
        info = BundleInfo(
            network=network,
            findings=data.info.findings,
            preprocessing=data.info.preprocessing,
            preprocessing_digest=data.info.preprocessing_digest,
            round=0,
            guidance=guidance.arm,
            training_data_digest=data.digest,
            metrics={
                "validation": validation,
                "history": [round_summary(0, guidance.arm, validation)],
                "epochs": history,
            },
            settings={"train": config.record()},
        )
        save_bundle(target, info, classifier, heads, model_card(info))
    return info


def _load_weights(classifier: ChexRadiNet, uri: str) -> None:
    store, key = open_object(uri)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / Path(key).name
        store.get_file(key, local)
        load_imagenet_weights(classifier, local)


def training_data(data: Dataset) -> TrainingData:
    """Return the training split as the training loop reads it: nothing of a box is in it."""
    return TrainingData(images=data.images, labels=data.labels, rows=data.rows(Split.TRAIN))


def headline(info: BundleInfo) -> dict[str, float]:
    """Return the defined figures that the Kubeflow page of a round shows; all finite."""
    mean_auroc = info.metrics["validation"]["mean_auroc"]
    shown = {} if mean_auroc is None else {"validation_mean_auroc": float(mean_auroc)}
    return {"round": float(info.round), **shown}


def round_summary(round_number: int, arm: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a bundle's history says of one round."""
    return {"round": round_number, "guidance": arm, "mean_auroc": metrics["mean_auroc"]}
