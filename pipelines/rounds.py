"""The sub-pipelines of a guided round: look, measure, train again with what was seen.

Each ParallelFor is alone in its own sub-pipeline, so that all it needs reaches it as an input; kfp
2.17's local runner replaces anything else with the loop's item.
"""

from typing import Any, List, NamedTuple  # noqa: UP035 - kfp reads these annotations

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from chexradinet.steps.gate import gate
from chexradinet.steps.gather import gather
from chexradinet.steps.heatmap import heatmap
from chexradinet.steps.radiomics import radiomics
from chexradinet.steps.retrain import retrain
from pipelines.resources import Placement, on_accelerator, on_processor, with_checkpoints


@dsl.pipeline(name="heatmaps", description="Regions of the training images, shard by shard.")
def heatmaps(
    shards: List[int],  # noqa: UP006
    num_shards: int,
    active: bool,
    region_threshold: float,
    worker_image: str,
    accelerator_type: str,
    accelerators: str,
    node_selector: dict,  # type: ignore[type-arg]
    tolerations: list,  # type: ignore[type-arg]
    heatmap_memory: str,
    model: Input[Model],
    dataset: Input[Dataset],
) -> Dataset:
    """Fan the heatmap stage out over shards and join what it finds."""
    placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
    with dsl.ParallelFor(shards, parallelism=4) as shard:
        found = heatmap(
            shard=shard,
            num_shards=num_shards,
            active=active,
            region_threshold=region_threshold,
            accelerator_type=accelerator_type,
            accelerators=accelerators,
            model=model,
            dataset=dataset,
        )
        on_accelerator(found, placement, heatmap_memory, accelerators)
    joined = gather(active=active, shards=dsl.Collected(found.outputs["regions"]))
    return on_processor(joined, placement, "4Gi").outputs["gathered"]


@dsl.pipeline(name="region-radiomics", description="Features of the regions, shard by shard.")
def region_radiomics(
    shards: List[int],  # noqa: UP006
    num_shards: int,
    active: bool,
    bin_width: float,
    worker_image: str,
    radiomics_memory: str,
    dataset: Input[Dataset],
    regions: Input[Dataset],
) -> Dataset:
    """Fan the radiomics stage out over shards and join what it measures."""
    placement = Placement(worker_image, "", {}, [])
    with dsl.ParallelFor(shards, parallelism=8) as shard:
        measured = radiomics(
            shard=shard,
            num_shards=num_shards,
            active=active,
            bin_width=bin_width,
            dataset=dataset,
            regions=regions,
        )
        on_processor(measured, placement, radiomics_memory)
    joined = gather(active=active, shards=dsl.Collected(measured.outputs["features"]))
    return on_processor(joined, placement, "4Gi").outputs["gathered"]


class RoundOutputs(NamedTuple):
    """What a round hands to the next."""

    go_on: bool
    model: Model
    control: Model
    permuted: Model


@dsl.pipeline(name="guided-round", description="Look, measure, and train again with what was seen.")
def guided_round(
    round_number: int,
    rounds: int,
    go_on: bool,
    num_shards: int,
    compare_arms: bool,
    guidance: str,
    sharpen_weight: float,
    contrastive_weight: float,
    region_threshold: float,
    bin_width: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    min_improvement: float,
    worker_image: str,
    accelerator_type: str,
    accelerator_count: int,
    node_selector: dict,  # type: ignore[type-arg]
    tolerations: list,  # type: ignore[type-arg]
    training_memory: str,
    heatmap_memory: str,
    radiomics_memory: str,
    model: Input[Model],
    control: Input[Model],
    permuted: Input[Model],
    dataset: Input[Dataset],
) -> NamedTuple(  # type: ignore[valid-type]
    "RoundOutputs",
    [("go_on", bool), ("model", Model), ("control", Model), ("permuted", Model)],
):
    """Run heatmap, radiomics and retrain once, beside the two arms of the comparison."""
    placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
    opened = gate(
        round_number=round_number,
        rounds=rounds,
        go_on=go_on,
        num_shards=num_shards,
        compare_arms=compare_arms,
        accelerator_count=accelerator_count,
    )
    on_processor(opened, placement, "256Mi")
    regions = heatmaps(
        shards=opened.outputs["shards"],
        num_shards=num_shards,
        active=opened.outputs["active"],
        region_threshold=region_threshold,
        worker_image=worker_image,
        accelerator_type=accelerator_type,
        accelerators=opened.outputs["accelerators"],
        node_selector=node_selector,
        tolerations=tolerations,
        heatmap_memory=heatmap_memory,
        model=model,
        dataset=dataset,
    )
    features = region_radiomics(
        shards=opened.outputs["shards"],
        num_shards=num_shards,
        active=opened.outputs["active"],
        bin_width=bin_width,
        worker_image=worker_image,
        radiomics_memory=radiomics_memory,
        dataset=dataset,
        regions=regions.output,
    )

    def arm(previous: Any, recipe: Any, permute: bool, active: str, count: str) -> Any:  # noqa: ANN401
        task = retrain(
            round_number=round_number,
            active=opened.outputs[active],
            guidance=recipe,
            permute_radiomics=permute,
            sharpen_weight=sharpen_weight,
            contrastive_weight=contrastive_weight,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            min_improvement=min_improvement,
            accelerator_type=accelerator_type,
            accelerators=opened.outputs[count],
            previous=previous,
            dataset=dataset,
            features=features.output,
        )
        on_accelerator(task, placement, training_memory, opened.outputs[count])
        return with_checkpoints(task)

    guided = arm(model, guidance, False, "active", "accelerators")
    plain = arm(control, "none", False, "arms_active", "arm_accelerators")
    shuffled = arm(permuted, guidance, True, "arms_active", "arm_accelerators")
    return RoundOutputs(
        go_on=guided.outputs["Output"],
        model=guided.outputs["model"],
        control=plain.outputs["model"],
        permuted=shuffled.outputs["model"],
    )
