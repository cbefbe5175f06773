"""Kubeflow component of `training.study`: one part."""

from kfp import dsl

from chexradinet.steps import worker


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
    from pathlib import Path

    from chexradinet.config.training import StudyPlan
    from chexradinet.dataset.dataset import open_dataset
    from chexradinet.training.processes import check_accelerator
    from chexradinet.training.study import run_part

    check_accelerator(accelerator_type, accelerators)
    data = open_dataset(Path(dataset.path))
    run_part(data, StudyPlan(**plan), int(part), num_parts, Path(cells.path))
