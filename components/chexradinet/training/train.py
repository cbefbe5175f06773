"""Round 0, a classifier trained on image labels alone, and the guided rounds after it.

A guided round trains the classifier on with the features of where it looked.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.errors import ArtifactError, MismatchError, TrainingError
from chexradinet.evaluation.evaluator import validate
from chexradinet.model import BUNDLE_HEAD, BundleInfo, read_bundle_info, require_match
from chexradinet.model.batches import Regions, TrainingData
from chexradinet.model.bundle import load_bundle, provenance, read_provenance, save_bundle
from chexradinet.model.distributed import Ranks
from chexradinet.model.losses import GuidanceHeads, build_heads
from chexradinet.model.resnet import ChexRadiNet, build_network
from chexradinet.model.training import fit, run_digest
from chexradinet.monitoring import ProgressReporter, timed_stage
from chexradinet.records import FeatureStatus, Split
from chexradinet.regions import FEATURE_NAMES, FeaturesArtifact, read_feature_shards
from chexradinet.regions.radiomics import fit_normalisation
from chexradinet.store import FinishedWork
from chexradinet.training.nodes import on_nodes
from chexradinet.training.pretrain import identity_of, pretrain, start_from
from chexradinet.training.processes import on_processes, safeguard

_log = logging.getLogger(__name__)

FitArguments = tuple[ChexRadiNet, GuidanceHeads | None, TrainingData, TrainConfig, GuidanceConfig]
"""Network, heads, data and settings, in the order of `fit`."""

Progress = Callable[[int, int, float], None]
"""Called with the step, the number of steps and the loss."""

SEED_STRIDE = 1009
"""Rounds of one run see different orders, and equal rounds of two arms the same."""


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What a round came to."""

    info: BundleInfo
    """Description of the bundle that was written."""
    improved: bool
    """Whether the validation mean AUROC beat every earlier round's by more than the margin."""


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
    inputs = [data, network.record(), config.record(), identity_of(initial_weights), together]
    if pretext is not None:
        inputs.append(pretext.record())
    settings: dict[str, Any] = {"network": network.struct(), "config": config.struct()}
    settings["initial_weights"] = initial_weights

    def here() -> None:
        with tempfile.TemporaryDirectory() as folder:
            start = initial_weights
            if pretext is not None:
                training_data(open_dataset(dataset, verify=False))  # refused before a long pretext
                start = str(Path(folder) / "encoder")
                pretrain(dataset, Path(start), network, pretext, progress=progress)
            on_processes(processes, train_here, dataset, target, network, config, start, progress)

    shared = {"dataset": (dataset, data)}
    return _obtain("train", digest_of(inputs), target, reuse, here, nodes, shared, settings)


def _obtain(
    stage: str,
    work: str,
    target: Path,
    reuse: bool,
    here: Callable[[], None],
    nodes: TrainingPlacement | None,
    shared: Mapping[str, tuple[Path, str]],
    settings: dict[str, Any],
) -> BundleInfo:
    """Put a bundle at `target`: that of an equal training, or one trained here or on nodes."""
    finished = FinishedWork(stage, work, reuse=reuse)
    if not finished.take(target, BUNDLE_HEAD):
        if nodes:
            on_nodes(nodes, stage, work, shared, settings, target)
        else:
            here()
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
    start = start_from(classifier, initial_weights, data)
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
                "history": [_summary(0, guidance.arm, validation)],
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


@timed_stage("retrain")
def retrain(
    bundle: Path,
    dataset: Path,
    features: Sequence[Path],
    target: Path,
    *,
    round_number: int,
    guidance: GuidanceConfig,
    config: TrainConfig,
    min_improvement: float = 0.0,
    progress: Progress | None = None,
    processes: int = 1,
    nodes: TrainingPlacement | None = None,
    reuse: bool = True,
) -> RoundOutcome:
    """Train one guided round from the bundle of the round before, and write its bundle.

    Args:
        bundle: Model of the round before, of the same arm.
        dataset: Directory that `ingest` wrote.
        features: Directories that `radiomics` wrote, one per shard; not read unless the recipe
            contrasts.
        target: Bundle directory to make.
        round_number: From 1.
        guidance: What is added to the classification loss.
        config: How to train; equal seeds give every arm the same images in the same order.
        min_improvement: By how much the validation mean AUROC must rise to count as better.
        progress: Called as `fit` calls it; of several processes the first does, with a copy.
        processes: Number of processes, one per accelerator; equal up to rounding to one process.
        nodes: Several nodes to train on instead of here.
        reuse: Take the bundle of an equal round that ended, if one is kept.

    Raises:
        ConfigError: `target` holds something else than a bundle, or cannot be made.
        ArtifactError: an input cannot be read.
        MismatchError: the bundle or the features belong to another data set.
        TrainingError: the loss left the finite numbers.
        Interrupted: the process was asked to end; the message says where its state is.
    """
    require_replaceable(target, BUNDLE_HEAD)
    for shard in features:
        if not shard.is_dir():
            raise ArtifactError(f"{shard} is not a directory; give what `radiomics` wrote")
    features = features if guidance.contrasts else []
    previous, data = read_bundle_info(bundle)[1], open_dataset(dataset, verify=False).digest
    together = nodes.num_processes if nodes else processes
    files = [sorted(sha256_of(file) for file in shard.glob("*")) for shard in features]
    inputs = [
        *(round_number, together, guidance.record(), config.record()),
        *(previous, data, sorted(chain.from_iterable(files))),
    ]
    shared = {"dataset": (dataset, data), "bundle": (bundle, previous)}
    for number, (shard, found) in enumerate(zip(features, files, strict=True)):
        shared[f"features-{number}"] = (shard, digest_of(found))
    settings: dict[str, Any] = {"guidance": guidance.struct(), "config": config.struct()}
    settings["round_number"] = round_number

    def here() -> None:
        given = (bundle, dataset, features, target, round_number, guidance, config, progress)
        on_processes(processes, retrain_here, *given)

    info = _obtain("retrain", digest_of(inputs), target, reuse, here, nodes, shared, settings)
    better = improved([entry["mean_auroc"] for entry in info.metrics["history"]], min_improvement)
    _log.info("round %d (%s): improved=%s", round_number, info.guidance, better)
    return RoundOutcome(info=info, improved=better)


def retrain_here(
    bundle: Path,
    dataset: Path,
    features: Sequence[Path],
    target: Path,
    round_number: int,
    guidance: GuidanceConfig,
    config: TrainConfig,
    progress: Progress | None = None,
) -> BundleInfo:
    """Do the training of `retrain` in this process, alone or as one of its group."""
    data = open_dataset(dataset)
    loaded = load_bundle(bundle)
    require_match(loaded.info, data.info)
    regions = None
    if guidance.contrasts:
        regions = _guiding_regions(data, read_feature_shards(features))
    if regions is None:
        guidance = without_contrast(guidance)
    seeded = config.changed(seed=config.seed + SEED_STRIDE * round_number)
    parts = (loaded.network, loaded.heads, training_data(data), seeded, guidance)
    run = digest_of(["retrain", round_number, data.digest, run_digest(*parts, regions)])
    with trained(run, parts, data, progress, regions) as (history, validation):
        summary = _summary(round_number, guidance.arm, validation)
        info = replace(
            loaded.info,
            round=round_number,
            guidance=guidance.arm,
            calibration=None,
            thresholds=None,
            reference=None,
            metrics={
                "validation": validation,
                "history": [*loaded.info.metrics["history"], summary],
                "num_guiding_regions": 0 if regions is None else len(regions.image_row),
            },
            settings={"train": seeded.record(), "guidance": guidance.record()},
            history=history,
        )
        if Ranks.current().is_writer:
            stages = [*read_provenance(bundle), provenance("retrain", [data.digest], seeded)]
            save_bundle(target, info, loaded.network, loaded.heads, stages)
    return info


def _guiding_regions(data: Dataset, features: FeaturesArtifact) -> Regions | None:
    """Return the usable regions with normalised features; None if no region is usable."""
    if features.provenance["dataset_digest"] != data.digest:
        raise MismatchError(
            f"the features come from data set {features.provenance['dataset_digest'][:12]}, but "
            f"{data.digest[:12]} was given; pass the data set that the radiomics were made of"
        )
    return usable_regions(data, features.table)


def usable_regions(data: Dataset, features: pd.DataFrame) -> Regions | None:
    """Return the regions that have features, normalised; None if no region has.

    Args:
        data: Data set of the images.
        features: `FEATURE_COLUMNS` of `chexradinet.regions`.

    Raises:
        TrainingError: a region lies in an image outside the training split.
    """
    rows = data.row_of(features["image_id"].to_numpy())
    if not np.isin(rows, data.rows(Split.TRAIN)).all():
        raise TrainingError("features of images outside the training split; they may not guide it")
    usable = (features["status"] == FeatureStatus.OK.value).to_numpy()
    if not usable.any():
        _log.warning("none of %d regions has features: this round runs unguided", len(usable))
        return None
    values = features.loc[usable, list(FEATURE_NAMES)].to_numpy(dtype=np.float64)
    return Regions(image_row=rows[usable], features=fit_normalisation(values).apply(values))


def without_contrast(guidance: GuidanceConfig) -> GuidanceConfig:
    """Return what is left of a round's guidance if no region has features."""
    recipe = GuidanceRecipe.SHARPEN if guidance.sharpens else GuidanceRecipe.NONE
    return guidance.changed(guidance=recipe)


def improved(values: Sequence[float | None], min_improvement: float) -> bool:
    """Tell whether the last round validates better than the best before it; the rule for a next.

    Args:
        values: Validation mean AUROC of each round so far; None, if undefined, never improves.
        min_improvement: Rise that counts.
    """
    earlier = [value for value in values[:-1] if value is not None]
    if values[-1] is None:
        return False
    return not earlier or values[-1] > max(earlier) + min_improvement


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


def _summary(round_number: int, arm: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a bundle's history says of one round."""
    return {"round": round_number, "guidance": arm, "mean_auroc": metrics["mean_auroc"]}
