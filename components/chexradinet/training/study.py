"""A study: arms by number of labelled images by seed, on one data set and one test split.

The labelled images of a seed are the same in all arms, and fewer are part of more, so that
differences are paired. A cell is kept as soon as it is done: an interrupted study continues with
the next one, and parts of a study that ran apart are read as one.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexradinet.artifacts import read_document, sha256_of, write_document, writing_file
from chexradinet.config import require
from chexradinet.config.study import StudyPlan
from chexradinet.dataset.dataset import Dataset
from chexradinet.errors import ArtifactError, MismatchError, TrainingError
from chexradinet.records import Split
from chexradinet.training.study_cell import Cell, Outcome, train_cell

KIND = "study-cell"
SCHEMA = 2
_PLAN_FILE = "plan.json"
_LABELLED = 6  # stream of random numbers


def cells_of(data: Dataset, plan: StudyPlan) -> list[Cell]:
    """Return the cells of a plan, those of one seed together.

    Raises:
        ConfigError: there are fewer training images than the plan asks for.
        TrainingError: the data set has no test image.
    """
    labelled = len(data.rows(Split.TRAIN))
    most = max(plan.labels)
    require(most <= labelled, "labels", most, f"at most {labelled}, the training images")
    if not len(data.rows(Split.TEST)):
        raise TrainingError(
            "the data set has no test image; ingest it with a test fraction above 0"
        )
    return [
        Cell(arm, number or labelled, seed)
        for seed, arm, number in product(plan.seeds, plan.arms, plan.labels)
    ]


def run_study(
    data: Dataset,
    plan: StudyPlan,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    cells: Sequence[Cell] | None = None,
) -> list[Outcome]:
    """Run the cells of a plan that are not done yet; return all.

    Args:
        data: Data set with a training and a test split.
        plan: Arms, numbers of labels, seeds.
        folder: Folder of the study; one of the same plan and data set is continued.
        progress: Called with the number of cells done and of all.
        cells: Part of the plan to run; None for all of it.

    Raises:
        ConfigError: there are fewer training images than asked for.
        MismatchError: the folder holds a study of another plan or data set.
        TrainingError: the data set has no test image.
    """
    chosen = cells_of(data, plan) if cells is None else cells
    claim(folder, plan, data)
    for done, cell in enumerate(chosen, 1):
        if not (folder / f"{cell.name}.json").exists():
            rows = labelled_rows(data, cell.labels, cell.seed)
            _keep(train_cell(cell, rows, data, plan, folder), folder)
        if progress:
            progress(done, len(chosen))
    return [_kept(cell, folder) for cell in chosen]


def outcomes_of(data: Dataset, plan: StudyPlan, folders: Iterable[Path]) -> list[Outcome]:
    """Return what is done of a plan, from the folders of its parts.

    Raises:
        MismatchError: a folder holds a study of another plan or data set.
        ArtifactError: no cell is done.
    """
    found = []
    for folder in folders:
        claim(folder, plan, data)
        done = [cell for cell in cells_of(data, plan) if (folder / f"{cell.name}.json").exists()]
        found += [_kept(cell, folder) for cell in done]
    if not found:
        raise ArtifactError("no cell of the study is done; run it first")
    return found


def labelled_rows(data: Dataset, number: int, seed: int) -> NDArray[np.int64]:
    """Return the labelled images of a seed: the first of an order that is the same in all arms."""
    rows = data.rows(Split.TRAIN)
    chosen = np.random.default_rng((seed, _LABELLED)).permutation(rows)[:number]
    return np.sort(chosen)


def claim(folder: Path, plan: StudyPlan, data: Dataset) -> None:
    """Write the plan before anything runs, or refuse a folder of another one.

    Raises:
        MismatchError: the folder holds a study of another plan or data set.
    """
    head = folder / _PLAN_FILE
    content = {"dataset_digest": data.digest, "plan": plan.record()}
    if head.exists():
        found = read_document(head, "study-plan", SCHEMA)
        if {name: found[name] for name in content} != content:
            raise MismatchError(
                f"{folder} holds a study of another plan or data set, and a plan is not changed "
                "after it was fixed; give another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_document(head, "study-plan", SCHEMA, content)


def _keep(outcome: Outcome, folder: Path) -> None:
    path = folder / f"{outcome.cell.name}.npz"
    with writing_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **outcome.arrays())
    content = {"sha256": sha256_of(path), "rounds": outcome.rounds, "chosen": outcome.chosen}
    write_document(folder / f"{outcome.cell.name}.json", KIND, SCHEMA, content)


def _kept(cell: Cell, folder: Path) -> Outcome:
    head, path = folder / f"{cell.name}.json", folder / f"{cell.name}.npz"
    document = read_document(head, KIND, SCHEMA)
    if sha256_of(path) != document["sha256"]:
        raise ArtifactError(f"{path} was changed; remove it and {head}, and run the study again")
    with np.load(path, allow_pickle=False) as arrays:
        return Outcome.of(cell, arrays, document["rounds"], document["chosen"])


def facts_of(data: Dataset) -> dict[str, Any]:
    """Return what a report says of the data."""
    test = data.manifest.iloc[data.rows(Split.TEST)]
    return {
        "dataset_digest": data.digest,
        "training_images": len(data.rows(Split.TRAIN)),
        "test_images": len(test),
        "test_patients": int(test["patient_id"].nunique()),
        "findings": list(data.info.findings),
    }
