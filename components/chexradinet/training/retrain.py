"""A guided round: the classifier trained on, with the features of where it looked."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chexradinet.artifacts import require_replaceable, sha256_of
from chexradinet.config import GuidanceConfig, GuidanceRecipe, TrainConfig, digest_of
from chexradinet.config.parameters import TrainingPlacement
from chexradinet.dataset.dataset import Dataset, open_dataset
from chexradinet.errors import MismatchError, TrainingError
from chexradinet.model.batches import Regions
from chexradinet.model.bundle import load_bundle, provenance, read_provenance, save_bundle
from chexradinet.model.bundle_info import BUNDLE_HEAD, BundleInfo, read_bundle_info, require_match
from chexradinet.model.distributed import Ranks
from chexradinet.model.training import run_digest
from chexradinet.monitoring import timed_stage
from chexradinet.records import FeatureStatus, Split
from chexradinet.regions.radiomics import fit_normalisation
from chexradinet.regions.tables import FEATURE_NAMES, FeaturesArtifact, read_feature_shards
from chexradinet.store.finished import FinishedWork
from chexradinet.training.nodes import on_nodes
from chexradinet.training.processes import on_processes
from chexradinet.training.train import round_summary, trained, training_data

_log = logging.getLogger(__name__)

SEED_STRIDE = 1009
"""Rounds of one run see different orders, and equal rounds of two arms the same."""


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """What a round came to."""

    info: BundleInfo
    """Description of the bundle that was written."""
    improved: bool
    """Whether the validation mean AUROC beat every earlier round's by more than the margin."""


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
    progress: Callable[[int, int, float], None] | None = None,
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
    features = features if guidance.contrasts else []
    arguments = (bundle, dataset, features, target, round_number, guidance, config)
    previous, data = read_bundle_info(bundle)[1], open_dataset(dataset, verify=False).digest
    together = nodes.num_processes if nodes else processes
    inputs = [
        *(round_number, together, guidance.record(), config.record()),
        *(previous, data),
        _digests(features),
    ]
    work = digest_of(inputs)
    finished = FinishedWork("retrain", work, reuse=reuse)
    if finished.take(target, BUNDLE_HEAD):
        pass
    elif nodes:
        shared = {"dataset": (dataset, data), "bundle": (bundle, previous)}
        for number, shard in enumerate(features):
            shared[f"features-{number}"] = (shard, digest_of(_digests([shard])))
        settings: dict[str, Any] = {"guidance": guidance.struct(), "config": config.struct()}
        settings["round_number"] = round_number
        on_nodes(nodes, "retrain", work, shared, settings, target)
    else:
        if processes == 1:
            retrain_here(*arguments, progress)
        else:
            on_processes(processes, retrain_here, *arguments, progress)
        finished.keep(target)
    info = read_bundle_info(target)[0]
    better = improved([entry["mean_auroc"] for entry in info.metrics["history"]], min_improvement)
    _log.info("round %d (%s): improved=%s", round_number, info.guidance, better)
    return RoundOutcome(info=info, improved=better)


def _digests(features: Sequence[Path]) -> list[str]:
    files = (file for folder in features for file in folder.glob("*"))
    return sorted(sha256_of(file) for file in files)


def retrain_here(
    bundle: Path,
    dataset: Path,
    features: Sequence[Path],
    target: Path,
    round_number: int,
    guidance: GuidanceConfig,
    config: TrainConfig,
    progress: Callable[[int, int, float], None] | None = None,
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
        summary = round_summary(round_number, guidance.arm, validation)
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
        features: `FEATURE_COLUMNS` of `regions.tables`.

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
