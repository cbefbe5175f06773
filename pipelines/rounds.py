"""A guided round: look, measure, train again with what was seen.

The ParallelFor is the only loop of its sub-pipeline, and all that it needs is an input of it: kfp
2.17's local runner replaces anything else with the loop's item.
"""

import inspect
from collections.abc import Callable
from typing import Any, List, NamedTuple  # noqa: UP035 - kfp reads these annotations

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from chexradinet.steps.training import heatmap, radiomics, retrain
from pipelines.resources import (
    Placement,
    on_accelerator,
    on_processor,
    with_checkpoints,
    with_shared_memory,
)

ARMS = {"model": "guided", "control": "control", "permuted": "permuted"}
"""Name of each arm, by the name of its model among the inputs and outputs of a round."""

PARALLEL_SHARDS = 8


def guided_round(number: int, has_arms: bool) -> Callable[..., Any]:
    """Return the sub-pipeline of one round.

    Round 1 takes one model and starts every arm from it: Kubeflow's metadata store refuses one
    artifact as two inputs of a task. A later round takes the model of each arm.

    Args:
        number: Number of the round, from 1.
        has_arms: Whether the control arm and the permuted arm are trained beside the guided one.
    """

    def run_round(
        rounds: int,
        active: bool,
        shards: List[int],  # noqa: UP006
        num_shards: int,
        region_settings: dict,  # type: ignore[type-arg]
        radiomics_settings: dict,  # type: ignore[type-arg]
        retrain_settings: dict,  # type: ignore[type-arg]
        worker_image: str,
        accelerator_type: str,
        accelerators: str,
        single_accelerator: str,
        node_selector: dict,  # type: ignore[type-arg]
        tolerations: list,  # type: ignore[type-arg]
        training_memory: str,
        heatmap_memory: str,
        radiomics_memory: str,
        dataset: Input[Dataset],
        model: Input[Model],
        control: Input[Model] = None,
        permuted: Input[Model] = None,
    ) -> Any:  # noqa: ANN401 - the outputs depend on the arms; see `_shaped`
        placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
        with dsl.ParallelFor(shards, parallelism=PARALLEL_SHARDS) as shard:
            found = heatmap(
                shard=shard,
                num_shards=num_shards,
                active=active,
                settings=region_settings,
                accelerator_type=accelerator_type,
                accelerators=single_accelerator,
                model=model,
                dataset=dataset,
            )
            found.set_display_name(f"round {number}: heatmaps")
            on_accelerator(found, placement, heatmap_memory, single_accelerator)
            measured = radiomics(
                active=active,
                settings=radiomics_settings,
                dataset=dataset,
                regions=found.outputs["regions"],
            )
            measured.set_display_name(f"round {number}: radiomics")
            on_processor(measured, placement, radiomics_memory)
        trained = {}
        for name, previous in zip(ARMS, (model, control, permuted), strict=True):
            if name != "model" and not has_arms:
                continue
            task = retrain(
                round_number=number,
                rounds=rounds,
                active=active,
                arm=ARMS[name],
                settings=retrain_settings,
                num_shards=num_shards,
                accelerator_type=accelerator_type,
                accelerators=accelerators,
                previous=previous or model,
                dataset=dataset,
                features=dsl.Collected(measured.outputs["features"]),
            )
            task.set_display_name(f"round {number}: {ARMS[name]} arm")
            on_accelerator(task, placement, training_memory, accelerators)
            with_checkpoints(with_shared_memory(task))
            trained[name] = task
        opened = trained["model"].outputs
        models = {name: task.outputs["model"] for name, task in trained.items()}
        return _outputs(has_arms)(
            active=opened["active"],
            shards=opened["shards"],
            accelerators=opened["accelerators"],
            single_accelerator=opened["single_accelerator"],
            **models,
        )

    dropped = () if has_arms and number > 1 else ("control", "permuted")
    described = dsl.pipeline(name="guided-round", description="Look, measure, train again.")
    return described(_shaped(run_round, dropped, _outputs(has_arms)))  # type: ignore[no-any-return]


def _outputs(has_arms: bool) -> Any:  # noqa: ANN401 - a type made from its fields
    """Return the type of a round's outputs: how the next round opens, and the models."""
    arms = list(ARMS) if has_arms else ["model"]
    fields = {
        "active": bool,
        "shards": List[int],  # noqa: UP006
        "accelerators": str,
        "single_accelerator": str,
    }
    return NamedTuple("RoundOutputs", [*fields.items(), *((name, Model) for name in arms)])


def _shaped(
    function: Callable[..., Any],
    dropped: tuple[str, ...],
    outputs: Any,  # noqa: ANN401
) -> Callable[..., Any]:
    """Give a function the signature that kfp reads: without some inputs, no input optional."""
    signature = inspect.signature(function)
    kept = [
        one.replace(default=inspect.Parameter.empty)
        for name, one in signature.parameters.items()
        if name not in dropped
    ]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=kept, return_annotation=outputs
    )
    return function
