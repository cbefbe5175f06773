"""A study: from `study.yaml` to one table and one report, on this machine and as a pipeline.

The pipeline trains every arm with every number of labels and every seed: a loop over arms and
seeds, whose parts train all numbers of labels from one encoder.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, List  # noqa: UP035 - kfp reads this annotation by name

import typer
import yaml
from kfp import dsl
from kfp.dsl import Dataset, Input
from rich.console import Console
from rich.progress import Progress

from chexradinet.config.parameters import StudySettings
from chexradinet.config.training import StudyPlan
from chexradinet.errors import ConfigError
from chexradinet.steps.study import study_plan, study_report, study_run
from chexradinet.steps.training import ingest
from pipelines.describe import described_pipeline
from pipelines.parameters import STUDY
from pipelines.resources import (
    Placement,
    on_accelerator,
    on_processor,
    with_archive,
    with_checkpoints,
    with_deidentification,
)

MAX_PARTS = 48
"""Most parts of a study: Argo keeps what it knows of a run in one object of 1 MiB."""


@dsl.pipeline(name="study-parts", description="Every arm and seed, and the report on all of them.")
def study_parts(
    parts: List[int],  # noqa: UP006
    num_parts: int,
    plan: dict,  # type: ignore[type-arg]
    worker_image: str,
    accelerator_type: str,
    accelerators: str,
    node_selector: dict,  # type: ignore[type-arg]
    tolerations: list,  # type: ignore[type-arg]
    training_memory: str,
    dataset: Input[Dataset],
) -> None:
    """Fan the study out over arms and seeds."""
    placement = Placement(worker_image, accelerator_type, node_selector, tolerations)
    with dsl.ParallelFor(parts, parallelism=8) as part:
        ran = study_run(
            part=part,
            num_parts=num_parts,
            plan=plan,
            accelerator_type=accelerator_type,
            accelerators=accelerators,
            dataset=dataset,
        )
        with_checkpoints(on_accelerator(ran, placement, training_memory, accelerators))
    judged = study_report(plan=plan, dataset=dataset, cells=dsl.Collected(ran.outputs["cells"]))
    on_processor(judged, placement, training_memory)


def study_pipeline() -> Callable[..., Any]:
    """Return the study pipeline."""

    def study(given: Any) -> None:  # noqa: ANN401 - pipeline channels
        """Compare ways to train by a plan that is fixed before: arms, numbers of labels, seeds."""
        place = Placement(
            given.worker_image, given.accelerator_type, given.node_selector, given.tolerations
        )
        planned = on_processor(study_plan(**vars(given), max_loop=MAX_PARTS), place, "1Gi").outputs
        ingested = ingest(
            source=given.source,
            labels=given.labels,
            settings=planned["ingest"],
            num_shards=1,
            max_loop=MAX_PARTS,
        )
        with_checkpoints(on_processor(ingested, place, given.ingest_memory))
        with_deidentification(with_archive(ingested))
        ingested.set_caching_options(enable_caching=False)
        study_parts(
            parts=planned["parts"],
            num_parts=planned["num_parts"],
            plan=planned["plan"],
            worker_image=given.worker_image,
            accelerator_type=given.accelerator_type,
            accelerators=planned["accelerators"],
            node_selector=given.node_selector,
            tolerations=given.tolerations,
            training_memory=given.training_memory,
            dataset=ingested.outputs["dataset"],
        )

    return described_pipeline(study, StudySettings, name=STUDY, display_name="ChexRadiNet study")


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
    from chexradinet.dataset import open_dataset
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
    plan: Annotated[
        Path, typer.Option(help="YAML file of the study: arms, labels, seeds, margin.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study; an existing one is continued.")],
) -> None:
    """Compare pretexts and their controls over numbers of labels and seeds."""
    run_study_of(dataset, plan, out, Console())
