"""The training pipeline: ingest, round 0, guided rounds, evaluation, publication.

The loop is unrolled when compiled and gated when run (ADR 0002): each round is a sub-pipeline whose
steps pass their input on once `rounds` is reached or validation stops improving.
"""

from collections.abc import Callable
from typing import Any

from chexradinet.config import MAX_ROUNDS_LIMIT, require
from chexradinet.config.parameters import Shape, TrainingSettings
from chexradinet.steps.training import configure, evaluate, ingest, publish, train
from pipelines.describe import described_pipeline
from pipelines.parameters import TRAINING
from pipelines.resources import (
    Placement,
    on_accelerator,
    on_processor,
    with_archive,
    with_checkpoints,
    with_deidentification,
    with_model_registry,
    with_shared_memory,
    with_store,
)
from pipelines.rounds import guided_round

DEFAULT_SHAPE = Shape(max_rounds=4, has_arms=True)
"""What a pipeline is compiled for unless the settings of a run are known."""


def training_pipeline(
    max_rounds: int = DEFAULT_SHAPE.max_rounds, has_arms: bool = DEFAULT_SHAPE.has_arms
) -> Callable[..., Any]:
    """Return the training pipeline for at most this many guided rounds.

    Args:
        max_rounds: Number of rounds that there are tasks for.
        has_arms: Whether there are tasks for the control arm and the permuted arm.

    Raises:
        ConfigError: `max_rounds` is not in [0, MAX_ROUNDS_LIMIT].
    """
    wanted = f"in [0, {MAX_ROUNDS_LIMIT}]; each round adds a sub-pipeline"
    require(0 <= max_rounds <= MAX_ROUNDS_LIMIT, "max_rounds", max_rounds, wanted)
    shape = Shape(max_rounds=max_rounds, has_arms=has_arms and max_rounds > 0)
    rounds = [guided_round(number, shape.has_arms) for number in range(1, max_rounds + 1)]

    def training(given: Any) -> Any:  # noqa: ANN401 - pipeline channels
        """Train ChexRadiNet on labelled chest X-rays and publish the best round."""
        place = Placement(
            given.worker_image, given.accelerator_type, given.node_selector, given.tolerations
        )
        checked = configure(**vars(given), max_rounds=shape.max_rounds, has_arms=shape.has_arms)
        settings = on_processor(checked, place, "512Mi").outputs

        ingested = ingest(
            source=given.source,
            labels=given.labels,
            settings=settings["ingest"],
            num_shards=settings["num_shards"],
            max_loop=shape.max_shards,
        )
        with_checkpoints(on_processor(ingested, place, given.ingest_memory))
        with_deidentification(with_archive(ingested))
        # The cache key holds the source's address, not its files: a cached ingest would be stale.
        ingested.set_caching_options(enable_caching=False)
        dataset = ingested.outputs["dataset"]

        trained = train(
            settings=settings["train"],
            accelerator_type=given.accelerator_type,
            accelerators=settings["accelerators"],
            dataset=dataset,
        )
        trained.set_display_name("round 0: training")
        on_accelerator(trained, place, given.training_memory, settings["accelerators"])
        with_checkpoints(with_shared_memory(trained))

        models = {"round_0": trained.outputs["model"]}
        arms = {"model": trained.outputs["model"]}
        active, shards = settings["active"], ingested.outputs["shards"]
        several, single = settings["round_accelerators"], settings["round_single_accelerator"]
        for number, guided in enumerate(rounds, start=1):
            done = guided(
                rounds=given.rounds,
                active=active,
                shards=shards,
                num_shards=ingested.outputs["num_shards"],
                region_settings=settings["regions"],
                radiomics_settings=settings["radiomics"],
                retrain_settings=settings["retrain"],
                worker_image=given.worker_image,
                accelerator_type=given.accelerator_type,
                accelerators=several,
                single_accelerator=single,
                node_selector=given.node_selector,
                tolerations=given.tolerations,
                training_memory=given.training_memory,
                heatmap_memory=given.heatmap_memory,
                radiomics_memory=given.radiomics_memory,
                dataset=dataset,
                **arms,
            )
            done.set_display_name(f"round {number}")
            active, shards = done.outputs["active"], done.outputs["shards"]
            several, single = done.outputs["accelerators"], done.outputs["single_accelerator"]
            names = ("model", "control", "permuted") if shape.has_arms else ("model",)
            arms = {name: done.outputs[name] for name in names}
            models[f"round_{number}"] = arms["model"]

        compared = {name: model for name, model in arms.items() if name != "model"}
        judged = evaluate(
            settings=settings["evaluate"],
            accelerator_type=given.accelerator_type,
            accelerators=settings["single_accelerator"],
            dataset=dataset,
            **models,
            **compared,
        )
        on_accelerator(judged, place, given.training_memory, settings["single_accelerator"])

        published = publish(
            models_uri=given.models_uri,
            settings=settings["publish"],
            best=judged.outputs["best"],
            evaluation=judged.outputs["evaluation"],
            dataset=dataset,
        )
        with_model_registry(with_store(on_processor(published, place, "4Gi")))
        published.set_caching_options(enable_caching=False)
        return published.outputs["Output"]

    return described_pipeline(
        training,
        TrainingSettings,
        name=TRAINING,
        display_name="ChexRadiNet training",
        output=str,
        defaults={"rounds": min(2, max_rounds), "compare_arms": shape.has_arms},
        note=f"At most {max_rounds} guided rounds.",
    )
