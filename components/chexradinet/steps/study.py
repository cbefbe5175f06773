"""Kubeflow components of the study pipeline."""

import functools
import shutil
from pathlib import Path
from typing import List, NamedTuple  # noqa: UP035 - kfp reads these annotations by name

from kfp import dsl

from chexradinet.config.parameters import StudySettings, nested
from chexradinet.config.training import StudyPlan
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


@worker
def study_run(
    part: int,
    num_parts: int,
    plan: dict,  # type: ignore[type-arg]
    accelerator_type: str,
    accelerators: str,
    dataset: dsl.Input[dsl.Dataset],
    cells: dsl.Output[dsl.Artifact],
) -> None:
    """Train every number of labels of a part's arms and seeds."""
    from chexradinet.dataset import open_dataset
    from chexradinet.training.processes import check_accelerator
    from chexradinet.training.study import run_part

    check_accelerator(accelerator_type, accelerators)
    data = open_dataset(Path(dataset.path))
    run_part(data, StudyPlan(**plan), int(part), num_parts, Path(cells.path))


@worker
def study_report(
    plan: dict,  # type: ignore[type-arg]
    dataset: dsl.Input[dsl.Dataset],
    cells: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    study: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Write the table, the differences, the sentences and the preregistration of a study."""
    from chexradinet.dataset import open_dataset
    from chexradinet.training.study import outcomes_of
    from chexradinet.training.study_report import study_document, write_study

    data, given = open_dataset(Path(dataset.path)), StudyPlan(**plan)
    outcomes = outcomes_of(data, given, [Path(part.path) for part in cells])
    write_study(Path(study.path), study_document(data, given, outcomes))
    (Path(study.path) / "study.yaml").write_text(given.as_yaml(), encoding="utf-8")
    shutil.copyfile(Path(study.path) / "report.html", report.path)
