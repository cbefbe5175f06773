"""Round 0: a classifier trained on image labels alone."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chexradinet.artifacts import require_replaceable, sha256_of
from chexradinet.config import (
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    Pretext,
    PretrainConfig,
    TrainConfig,
    digest_of,
    require,
)
from chexradinet.config.parameters import TrainingPlacement
from chexradinet.dataset.dataset import Dataset, open_dataset
from chexradinet.errors import TrainingError
from chexradinet.evaluation.evaluator import validate
from chexradinet.model.batches import Regions, TrainingData
from chexradinet.model.bundle import provenance, read_provenance, save_bundle
from chexradinet.model.bundle_info import BUNDLE_HEAD, BundleInfo, read_bundle_info
from chexradinet.model.distributed import Ranks
from chexradinet.model.encoder import ENCODER_FILE, load_encoder
from chexradinet.model.losses import GuidanceHeads, build_heads
from chexradinet.model.resnet import ChexRadiNet, build_network, load_imagenet_weights
from chexradinet.model.training import fit, run_digest
from chexradinet.monitoring import ProgressReporter, timed_stage
from chexradinet.records import Split
from chexradinet.store.finished import FinishedWork
from chexradinet.store.opening import open_object, open_store
from chexradinet.store.transfer import download_directory
from chexradinet.training.nodes import on_nodes
from chexradinet.training.pretrain import pretrain
from chexradinet.training.processes import on_processes, safeguard

FitArguments = tuple[ChexRadiNet, GuidanceHeads | None, TrainingData, TrainConfig, GuidanceConfig]
"""Network, heads, data and settings, in the order of `fit`."""

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
    processes: int = 1,
    nodes: TrainingPlacement | None = None,
    reuse: bool = True,
    pretext: PretrainConfig | None = None,
) -> BundleInfo:
    """Train round 0 and write its bundle.

    Args:
        dataset: Directory that `ingest` wrote.
        target: Bundle directory to make.
        network: Shape of the classifier.
        config: How to train it.
        initial_weights: Path or URI of an encoder that `pretrain` wrote, or of a torchvision state
            dict of the same depth; empty starts at random.
        progress: Called as `fit` calls it; of several processes the first does, with a copy.
        processes: Number of processes, one per accelerator; equal up to rounding to one process.
        nodes: Several nodes to train on instead of here.
        reuse: Take the bundle of an equal training that ended, if one is kept.
        pretext: How to pre-train an encoder on the training images first; None does not.

    Raises:
        ConfigError: `target` holds something else than a bundle, or cannot be made; or weights and
            a pretext are given.
        ArtifactError: the data set or the weights cannot be read.
        TrainingError: there is no labelled training image, or the loss left the finite numbers.
        Interrupted: the process was asked to end; the message says where its state is.
    """
    require_replaceable(target, BUNDLE_HEAD)
    if pretext is not None and pretext.pretext is Pretext.NONE:
        pretext = None
    wanted = "empty if there is a pretext: a network starts from one of them"
    require(not (pretext and initial_weights), "initial_weights", initial_weights, wanted)
    data = open_dataset(dataset, verify=False).digest
    together = nodes.num_processes if nodes else processes
    inputs = [data, network.record(), config.record(), _identity(initial_weights), together]
    if pretext is not None:
        inputs.append(pretext.record())
    work = digest_of(inputs)
    finished = FinishedWork("train", work, reuse=reuse)
    if finished.take(target, BUNDLE_HEAD):
        return read_bundle_info(target)[0]
    if nodes:
        settings: dict[str, Any] = {"network": network.struct(), "config": config.struct()}
        settings["initial_weights"] = initial_weights
        on_nodes(nodes, "train", work, {"dataset": (dataset, data)}, settings, target)
        return read_bundle_info(target)[0]
    with tempfile.TemporaryDirectory() as folder:
        if pretext is not None:
            initial_weights = str(Path(folder) / "encoder")
            pretrain(dataset, Path(initial_weights), network, pretext, progress=progress)
        arguments = (dataset, target, network, config, initial_weights, progress)
        if processes == 1:
            train_here(*arguments)
        else:
            on_processes(processes, train_here, *arguments)
    finished.keep(target)
    return read_bundle_info(target)[0]


def train_here(
    dataset: Path,
    target: Path,
    network: NetworkConfig,
    config: TrainConfig,
    initial_weights: str,
    progress: Progress | None = None,
) -> BundleInfo:
    """Do the training of `train` in this process, alone or as one of its group."""
    data = open_dataset(dataset)
    classifier = build_network(network, len(data.info.findings), seed=config.seed)
    start = start_from(classifier, initial_weights, data) if initial_weights else Start({}, [])
    classifier.freeze(config.freeze)
    heads = build_heads(classifier.num_channels, seed=config.seed)
    guidance = GuidanceConfig(guidance=GuidanceRecipe.NONE)
    parts = (classifier, heads, training_data(data), config, guidance)
    run = digest_of(["train", data.digest, network.record(), run_digest(*parts)])
    with trained(run, parts, data, progress) as (history, validation):
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
            },
            settings={"train": config.record(), **start.settings},
            finding_details=dict(data.info.finding_details),
            history=history,
        )
        if Ranks.current().is_writer:
            stages = [*start.provenance, provenance("train", [data.digest], config)]
            save_bundle(target, info, classifier, heads, stages)
    return info


@contextmanager
def trained(
    run: str,
    parts: FitArguments,
    data: Dataset,
    progress: Progress | None,
    regions: Regions | None = None,
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Train under a safeguard; give the history and the validation metrics.

    The state of the training is kept until the block ends without an error.

    Args:
        run: Digest of all that decides the outcome.
        parts: Network, heads, data and settings, as `fit` takes them.
        data: Data set to validate on.
        progress: As `fit` takes it.
        regions: As `fit` takes it.
    """
    network = parts[0]
    with safeguard(run) as guard:
        history = fit(
            *parts,
            regions=regions,
            progress=ProgressReporter(progress),
            checkpoint=guard.checkpoint,
            should_stop=guard.should_stop,
            should_save=guard.should_save,
            validate=lambda: validate(network, data)["mean_auroc"],
        )
        guard.trained()
        yield history, validate(network, data)


def _identity(uri: str) -> list[str]:
    """Return what changes whenever initial weights or an encoder do; empty without any."""
    if not uri:
        return []
    folder, prefix = open_store(uri)
    if folder.exists(prefix + ENCODER_FILE):
        return [info.etag for info in folder.list(prefix)]
    store, key = open_object(uri)
    return [store.stat(key).etag]


class Start(NamedTuple):
    """What a bundle records of the weights that its training began with."""

    settings: dict[str, Any]
    """Of an encoder; empty for a state dict."""
    provenance: list[dict[str, Any]]


def start_from(classifier: ChexRadiNet, uri: str, data: Dataset) -> Start:
    """Load initial weights; return what a bundle records of them."""
    folder, prefix = open_store(uri)
    with tempfile.TemporaryDirectory() as temporary:
        if folder.exists(prefix + ENCODER_FILE):
            local = Path(temporary) / "encoder"
            download_directory(uri, local)
            record = load_encoder(classifier, local, data.info.preprocessing_digest)
            kept = {name: record[name] for name in ("digest", "pretext", "sources")}
            return Start({"encoder": kept}, read_provenance(local))
        store, key = open_object(uri)
        local = Path(temporary) / Path(key).name
        store.get_file(key, local)
        load_imagenet_weights(classifier, local)
        return Start({}, [{"stage": "initial_weights", "sha256": sha256_of(local)}])


def training_data(data: Dataset) -> TrainingData:
    """Return the training split as the training loop reads it: nothing of a box is in it.

    Raises:
        TrainingError: a finding has no known label in the training split; it names those.
    """
    rows = data.rows(Split.TRAIN)
    known = ~np.isnan(data.labels[rows])
    columns = zip(data.info.findings, known.T, strict=True)
    names = [name for name, column in columns if not column.any()]
    if 0 < len(names) < known.shape[1]:
        raise TrainingError(
            f"no training image has a known label of {', '.join(names)}: there is nothing to learn "
            "it from; ingest without it, or with labels for it"
        )
    return TrainingData(images=data.images, labels=data.labels, rows=rows)


def headline(info: BundleInfo, images_per_s: float | None = None) -> dict[str, float]:
    """Return the defined figures that the Kubeflow page of a round shows; all finite.

    Args:
        info: Record of the round's model.
        images_per_s: Pace of its training, if it was measured.
    """
    last = info.history[-1] if info.history else {}
    shown = {
        "round": info.round,
        "validation_mean_auroc": info.metrics["validation"]["mean_auroc"],
        "loss": last.get("loss"),
        **{f"loss_{name}": value for name, value in last.get("parts", {}).items()},
        "learning_rate": last.get("learning_rate"),
        "images_per_s": images_per_s,
    }
    return {name: float(value) for name, value in shown.items() if value is not None}


def round_summary(round_number: int, arm: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a bundle's history says of one round."""
    return {"round": round_number, "guidance": arm, "mean_auroc": metrics["mean_auroc"]}
