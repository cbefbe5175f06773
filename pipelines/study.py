"""A study on this machine: from `study.yaml` to one table and one report."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import Progress

from chexradinet.config.study import StudyPlan
from chexradinet.errors import ConfigError


def read_plan(path: Path) -> StudyPlan:
    """Return the plan of a `study.yaml`.

    Raises:
        ConfigError: the file cannot be read, or a value of it is not possible.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}); give a study.yaml") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; it needs arms and comparisons")
    return StudyPlan(**content)


def run_study_of(dataset: Path, plan: Path, out: Path, console: Console) -> None:
    """Run a study and write its report.

    Args:
        dataset: Directory that `ingest` wrote.
        plan: A `study.yaml`; copied before anything runs.
        out: Folder of the study; an interrupted one continues.
        console: Where the sentences are printed.

    Raises:
        ConfigError: the plan cannot be read.
        MismatchError: the folder holds a study of another plan or data set.
    """
    asked = read_plan(plan)
    # Here, because torch takes seconds to load.
    from chexradinet.dataset.dataset import open_dataset
    from chexradinet.training.study import claim, run_study
    from chexradinet.training.study_report import study_document, write_study

    data = open_dataset(dataset)
    claim(out, asked, data)
    shutil.copyfile(plan, out / "study.yaml")
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("study", total=None)
        outcomes = run_study(
            data, asked, out, lambda done, count: bars.update(task, completed=done, total=count)
        )
    document = study_document(data, asked, outcomes)
    write_study(out, document)
    for sentence in document["sentences"]:
        console.print(sentence, highlight=False)
    console.print(f"report in {out / 'report.html'}", highlight=False)


def study_command(
    dataset: Annotated[Path, typer.Option(help="Data set that `ingest` wrote.")],
    plan: Annotated[Path, typer.Option(help="The study.yaml: arms, labels, seeds, margin.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; an old one continues.")],
) -> None:
    """Compare pretexts and their controls over numbers of labels and seeds."""
    run_study_of(dataset, plan, out, Console())
