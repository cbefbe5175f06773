"""A study in parts that run apart: each trains all numbers of labels of some arms and seeds.

An arm and a seed stay together because their encoder is the same for all numbers of labels.
"""

import json
import shutil
import tempfile
from itertools import product
from pathlib import Path

from chexradinet.artifacts import writing_file
from chexradinet.config.study import StudyPlan
from chexradinet.dataset.dataset import Dataset

PREREGISTRATION = "study.yaml"
"""File of a plan as it was before anything ran; JSON, which is YAML too."""


def num_parts(plan: StudyPlan, at_most: int) -> int:
    """Return the number of parts: one per arm and seed, unless there are too many."""
    return min(at_most, len(plan.arms) * len(plan.seeds))


def run_part(data: Dataset, plan: StudyPlan, part: int, count: int, target: Path) -> None:
    """Train the cells of one part, and leave them at `target`, without their encoders.

    Args:
        data: Data set.
        plan: Plan of the whole study.
        part: Number of the part, in [0, count).
        count: Number of parts.
        target: Folder to make.
    """
    # Here, so that planning costs no torch.
    from chexradinet.training.study import cells_of, run_study

    mine = set(list(product(plan.seeds, plan.arms))[part::count])
    cells = [cell for cell in cells_of(data, plan) if (cell.seed, cell.arm) in mine]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        run_study(data, plan, folder, cells=cells)
        kept = shutil.ignore_patterns("encoder-*", "targets")
        shutil.copytree(folder, target, ignore=kept, dirs_exist_ok=True)


def write_preregistration(folder: Path, plan: StudyPlan) -> None:
    """Write a plan as a `study.yaml` that `chexradinet study --plan` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing_file(folder / PREREGISTRATION) as temporary:
        temporary.write_text(json.dumps(plan.struct(), indent=1) + "\n", encoding="utf-8")
