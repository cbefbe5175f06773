"""Kubeflow components of the training pipeline."""

import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.config import (
    GuidanceRecipe,
    IngestConfig,
    PublishConfig,
    RadiomicsConfig,
    RegionConfig,
    RetrainConfig,
)
from chexradinet.config.parameters import (
    Assessment,
    RoundZero,
    Shape,
    TrainingPlacement,
    TrainingSettings,
    nested,
)
from chexradinet.monitoring import PaceKeeper, ProgressLog
from chexradinet.steps import worker


# fmt: off
@functools.partial(worker, settings=TrainingSettings)
def configure(
    max_rounds: int, has_arms: bool, **given: object
) -> NamedTuple("Configured", [  # type: ignore[valid-type]
    ("ingest", dict), ("train", dict), ("regions", dict), ("radiomics", dict), ("retrain", dict),
    ("evaluate", dict), ("publish", dict), ("num_shards", int), ("active", bool),
    ("accelerators", str), ("single_accelerator", str), ("round_accelerators", str),
    ("round_single_accelerator", str),
]):
    # fmt: on
    """Return the settings of each stage, and whether and how round 1 runs."""
    from chexradinet.training.rounds import open_round, single_accelerator

    shape = Shape(max_rounds=max_rounds, has_arms=has_arms)
    settings = nested(TrainingSettings, given)
    shape.check(settings.rounds)
    # As text, because Kubeflow's driver reads a number in a resource setting as nothing.
    accelerators, of_node = str(settings.placement.accelerator_count), ""
    nodes: dict[str, object] = {}
    if settings.placement.num_nodes > 1:  # a step of a training only follows its nodes
        accelerators, of_node = "0", accelerators
        nodes = {"nodes": settings.placement.struct()}
    opened = open_round(1, settings.rounds.rounds, True, 1, accelerators, of_node)
    return (
        settings.ingest.struct(),
        settings.train.struct() | nodes,
        settings.look.regions.struct(),
        settings.look.radiomics.struct(),
        settings.retrain.struct() | nodes,
        settings.evaluate.struct(),
        settings.publish.struct(),
        settings.rounds.num_shards if opened.active else 1,
        opened.active,
        accelerators,
        single_accelerator(of_node or accelerators),
        opened.accelerators,
        opened.single_accelerator,
    )


@worker
def ingest(
    source: str,
    labels: str,
    settings: dict,  # type: ignore[type-arg]
    num_shards: int,
    max_loop: int,
    dataset: dsl.Output[dsl.Dataset],
    ingest_report: dsl.Output[dsl.HTML],
) -> NamedTuple(  # type: ignore[valid-type]
    "Ingested",
    [("num_shards", int), ("shards", List[int])],  # noqa: UP006
):
    """Write the data set that all later stages read; return how rounds spread it over shards."""
    from chexradinet.ingest.ingest import ingest
    from chexradinet.ingest.output import report_ingest
    from chexradinet.training.rounds import shards_for

    target, config = Path(dataset.path), IngestConfig(**settings)
    info = ingest(source, target, config, ProgressLog("files"), labels=labels)
    report_ingest(target, Path(ingest_report.path))
    dataset.metadata["digest"] = info.digest
    dataset.metadata["images"] = info.counts["images"]
    chosen = shards_for(info.counts["splits"]["train"], num_shards, max_loop)
    return (chosen, list(range(chosen)))


@worker
def train(
    settings: dict,  # type: ignore[type-arg]
    accelerator_type: str,
    accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train round 0 on image labels alone."""
    from chexradinet.training.processes import num_processes
    from chexradinet.training.train import headline, train

    place = _nodes(settings)
    given = RoundZero(**settings)
    with tempfile.TemporaryDirectory() as folder:
        pace = PaceKeeper(given.training.batch_size, Path(folder) / "pace")
        info = train(
            Path(dataset.path),
            Path(model.path),
            given.network,
            given.training,
            initial_weights=given.initial_weights,
            progress=pace,
            processes=num_processes(accelerator_type, accelerators),
            nodes=place,
            reuse=given.reuse,
            pretext=given.pretrain,
        )
        figures = headline(info, pace.images_per_s())
    _log(metrics, figures)
    model.metadata["round"] = 0


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
    from chexradinet.training.rounds import skip

    if not active:
        skip(Path(regions.path))
        return
    from chexradinet.training.processes import check_accelerator
    from chexradinet.training.rounds import Shard, heatmap

    check_accelerator(accelerator_type, accelerators)
    heatmap(
        Path(model.path),
        Path(dataset.path),
        Path(regions.path),
        RegionConfig(**settings),
        Shard(int(shard), num_shards),
    )


@worker
def radiomics(
    active: bool,
    settings: dict,  # type: ignore[type-arg]
    dataset: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    features: dsl.Output[dsl.Dataset],
) -> None:
    """Write the 102 radiomics features of one shard's regions."""
    from chexradinet.training.rounds import skip

    if not active:
        skip(Path(features.path))
        return
    from chexradinet.training.rounds import radiomics

    radiomics(
        Path(dataset.path),
        Path(regions.path),
        Path(features.path),
        RadiomicsConfig(**settings),
        progress=ProgressLog("regions"),
    )


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
    """Train one arm of a round, and open the next round unless validation fell too far.

    A closed round copies the previous model, byte for byte; so does the permuted arm if the recipe
    does not use radiomics.
    """
    from chexradinet.model import copy_bundle
    from chexradinet.training.rounds import open_round

    place, given = _nodes(settings), RetrainConfig(**settings)
    if not active or (arm == "permuted" and not given.guidance.contrasts):
        # Before torch is imported, which would be most of what a closed round costs.
        copy_bundle(Path(previous.path), Path(model.path))
        return open_round(round_number + 1, rounds, False, num_shards, accelerators)
    from chexradinet.training.processes import num_processes
    from chexradinet.training.train import headline, retrain

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
    _log(metrics, figures)
    model.metadata["round"] = round_number
    of_node = str(place.accelerator_count) if place else ""
    return open_round(
        round_number + 1, rounds, outcome.improved, num_shards, accelerators, of_node
    )


# fmt: off
@worker
def evaluate(
    settings: dict,  # type: ignore[type-arg]
    accelerator_type: str, accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    best: dsl.Output[dsl.Model], evaluation: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    round_0: dsl.Input[dsl.Model], round_1: dsl.Input[dsl.Model] = None,
    round_2: dsl.Input[dsl.Model] = None, round_3: dsl.Input[dsl.Model] = None,
    round_4: dsl.Input[dsl.Model] = None, round_5: dsl.Input[dsl.Model] = None,
    round_6: dsl.Input[dsl.Model] = None, round_7: dsl.Input[dsl.Model] = None,
    round_8: dsl.Input[dsl.Model] = None, control: dsl.Input[dsl.Model] = None,
    permuted: dsl.Input[dsl.Model] = None,
) -> None:
    # fmt: on
    """Choose the best round on validation, calibrate it, and judge all rounds on the test split."""
    from chexradinet.training.evaluate import Arms, evaluate
    from chexradinet.training.processes import check_accelerator

    check_accelerator(accelerator_type, accelerators)
    given = Assessment(**settings)
    later = (round_1, round_2, round_3, round_4, round_5, round_6, round_7, round_8)
    outcome = evaluate(
        Path(dataset.path),
        Arms(
            rounds=[Path(model.path) for model in (round_0, *later) if model is not None],
            control=None if control is None else Path(control.path),
            permuted=None if permuted is None else Path(permuted.path),
        ),
        best=Path(best.path),
        target=Path(evaluation.path),
        config=given.evaluation,
        regions=given.regions,
        radiomics=given.radiomics,
    )
    shutil.copyfile(Path(evaluation.path) / "report.html", report.path)
    _log(metrics, outcome.headline())
    roc.log_roc_curve(*outcome.pooled_roc())
    best.metadata["round"] = outcome.best_round


@worker
def publish(
    models_uri: str,
    settings: dict,  # type: ignore[type-arg]
    best: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    dataset: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Markdown],
    figures: dsl.Output[dsl.Artifact],
) -> str:
    """Publish the best round if it beats the champion; return the champion's digest."""
    from chexradinet.artifacts import write_document
    from chexradinet.training.publish import DECISION_SCHEMA, publish

    outcome = publish(
        Path(best.path),
        Path(evaluation.path),
        Path(dataset.path),
        models_uri,
        PublishConfig(**settings),
    )
    write_document(Path(figures.path), "publication", DECISION_SCHEMA, outcome.as_dict())
    Path(decision.path).write_text(outcome.as_markdown(), encoding="utf-8")
    return outcome.champion_digest


def _nodes(settings: dict[str, Any]) -> TrainingPlacement | None:
    """Take from a stage's settings the nodes that train; None if it trains in its own pod."""
    return TrainingPlacement(**settings.pop("nodes")) if "nodes" in settings else None


def _log(metrics: dsl.Metrics, figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        metrics.log_metric(name, value)
