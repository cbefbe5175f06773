"""Kubeflow component that checks all settings of a training in seconds, before ingest."""

import functools
from typing import NamedTuple

from chexradinet.config.parameters import TrainingSettings
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
    from chexradinet.config.parameters import Shape, TrainingSettings, nested
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
