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
    from chexradinet.config.training import StudyPlan

    settings = nested(StudySettings, given)
    plan = StudyPlan(**settings.plan)
    folder = Path(preregistration.path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(plan.as_yaml(), encoding="utf-8")
    count = plan.num_parts(max_loop)
    return (
        settings.ingest.struct(),
        plan.struct(),
        list(range(count)),
        count,
        str(settings.placement.accelerator_count),
    )
