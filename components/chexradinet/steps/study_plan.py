"""Kubeflow component that fixes a study's plan, and checks all settings, before anything runs."""

import functools
from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.config.parameters import StudySettings
from chexradinet.steps import worker


# fmt: off
@functools.partial(worker, settings=StudySettings)
def study_plan(
    max_loop: int, preregistration: dsl.Output[dsl.Artifact], **given: object
) -> NamedTuple("Planned", [  # type: ignore[valid-type]
    ("ingest", dict), ("plan", dict), ("parts", List[int]),  # noqa: UP006
    ("num_parts", int), ("accelerators", str),
]):
    # fmt: on
    """Write the preregistration, and return how the study is spread over parts."""
    from pathlib import Path

    from chexradinet.config.parameters import StudySettings, nested
    from chexradinet.config.study import StudyPlan
    from chexradinet.training.study_parts import num_parts, write_preregistration

    settings = nested(StudySettings, given)
    plan = StudyPlan(**settings.plan)
    write_preregistration(Path(preregistration.path), plan)
    count = num_parts(plan, max_loop)
    return (
        settings.ingest.struct(),
        plan.struct(),
        list(range(count)),
        count,
        str(settings.placement.accelerator_count),
    )
