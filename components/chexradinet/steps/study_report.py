"""Kubeflow component of `training.study_report`."""

from typing import List  # noqa: UP035 - kfp reads this annotation by name

from kfp import dsl

from chexradinet.steps import worker


@worker
def study_report(
    plan: dict,  # type: ignore[type-arg]
    dataset: dsl.Input[dsl.Dataset],
    cells: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    study: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
) -> None:
    """Write the table, the differences, the sentences and the preregistration of a study."""
    import shutil
    from pathlib import Path

    from chexradinet.config.training import StudyPlan
    from chexradinet.dataset.dataset import open_dataset
    from chexradinet.training.study import outcomes_of
    from chexradinet.training.study_report import study_document, write_study

    data, given = open_dataset(Path(dataset.path)), StudyPlan(**plan)
    outcomes = outcomes_of(data, given, [Path(part.path) for part in cells])
    write_study(Path(study.path), study_document(data, given, outcomes))
    (Path(study.path) / "study.yaml").write_text(given.as_yaml(), encoding="utf-8")
    shutil.copyfile(Path(study.path) / "report.html", report.path)
