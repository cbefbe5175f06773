"""The commands that talk to a Kubeflow Pipelines server: publish, submit and schedule."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chexradinet.config.parameters import WORKER_IMAGE, Shape
from chexradinet.errors import ConfigError
from pipelines.acceptance import Acceptance
from pipelines.api import Api, connect, endpoint_from
from pipelines.check_cluster import Site, check_cluster, show
from pipelines.compile import BUILD_FOLDER, compile_nightly, compile_study, compile_training
from pipelines.follow import follow
from pipelines.native import require_pinned, require_registry
from pipelines.parameters import NIGHTLY, STUDY, TRAINING, asked_shape, definitions
from pipelines.resources import RUN_ACCOUNT
from pipelines.schedule import Schedule, remove_schedule, require_cron, set_schedule
from pipelines.submit import (
    DEFAULT_EXPERIMENT,
    Submission,
    ensure_experiment,
    find_experiment,
    load,
    prepare,
    start,
)
from pipelines.training import DEFAULT_SHAPE
from pipelines.upload import find_pipeline, publish

NAMES = {"training": TRAINING, "nightly": NIGHTLY, "study": STUDY}
"""Pipelines by the word on the command line."""

console = Console(width=None if sys.stdout.isatty() else 110)

Name = Annotated[str, typer.Argument(help="training, nightly or study")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter, as name=value; repeatable.")
]
Host = Annotated[
    str, typer.Option(help="Address of the API server; KFP_HOST otherwise. The token: KFP_TOKEN.")
]
Namespace = Annotated[
    str, typer.Option(help="Profile, in a multi-user installation; KFP_NAMESPACE otherwise.")
]
Experiment = Annotated[str, typer.Option(help="Experiment to list the runs under.")]
Account = Annotated[
    str,
    typer.Option(
        "--service-account",
        help="Service account of the run's pods; '' for the installation's default.",
    ),
]
File = Annotated[
    Path | None, typer.Option("--file", help="A compiled pipeline; else it is compiled now.")
]
Image = Annotated[
    str,
    typer.Option(
        envvar="CHEXRADINET_IMAGE", help="Image that steps are compiled for, with tag or digest."
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file of parameters; --set wins over it.")
]
MaxRounds = Annotated[int, typer.Option(help="Guided rounds that the pipeline can run at most.")]
Arms = Annotated[
    bool, typer.Option("--arms/--no-arms", help="Compile the control and permuted arms too.")
]
VersionName = Annotated[str, typer.Option(help="Name of a new version.")]
CheckCluster = Annotated[
    bool, typer.Option(help="Ask kubectl whether the cluster has the accelerators.")
]


def publish_command(
    name: Name,
    host: Host = "",
    namespace: Namespace = "",
    file: File = None,
    image: Image = "",
    max_rounds: MaxRounds = DEFAULT_SHAPE.max_rounds,
    arms: Arms = DEFAULT_SHAPE.has_arms,
    version_name: VersionName = "",
) -> None:
    """Upload a pipeline if it is new, and start nothing."""
    path = _compiled(name, file, image, Shape(max_rounds=max_rounds, has_arms=arms))
    endpoint = endpoint_from(os.environ, host, namespace)
    loaded = load(path, NAMES[name])
    _require_image(loaded, image)
    api = connect(endpoint)
    publish(api, loaded, find_pipeline(api, loaded.pipeline), version_name, console)


def submit_command(
    name: Name,
    settings: Settings = None,
    config: ConfigFile = None,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = DEFAULT_EXPERIMENT,
    service_account: Account = RUN_ACCOUNT,
    file: File = None,
    image: Image = "",
    version_name: VersionName = "",
    wait: Annotated[bool, typer.Option(help="Follow the run until it ends.")] = True,
    check_cluster: CheckCluster = True,
) -> None:
    """Upload a pipeline if it is new, start a run, and follow it to its end.

    A training is compiled for the rounds and arms that the run asks for.
    """
    words = settings or []
    path = _compiled(name, file, image, asked_shape(words, config))
    endpoint = endpoint_from(os.environ, host, namespace)
    submission = prepare(path, NAMES[name], words, console, check_cluster, config)
    _require_image(submission, image)
    api = connect(endpoint)
    found = find_experiment(api, experiment)
    pipeline_id = find_pipeline(api, submission.pipeline)
    version = publish(api, submission, pipeline_id, version_name, console)
    run_id = start(api, submission, version, ensure_experiment(api, found), service_account)
    link = endpoint.run_link(run_id)
    console.print(f"started: {link}", highlight=False, markup=False, soft_wrap=True)
    if wait:
        _follow(api, run_id, link)


def _follow(api: Api, run_id: str, link: str) -> None:
    try:
        follow(api, run_id, console)
    except KeyboardInterrupt:
        console.print(f"no longer followed; the run continues: {link}", highlight=False)
        raise SystemExit(130) from None
    console.print("succeeded", highlight=False)


def schedule_command(
    name: Name,
    settings: Settings = None,
    config: ConfigFile = None,
    cron: Annotated[
        str, typer.Option(help="Cron expression of six fields, seconds first.")
    ] = "0 0 2 * * *",
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the schedule instead of creating it.")
    ] = False,
    host: Host = "",
    namespace: Namespace = "",
    experiment: Experiment = DEFAULT_EXPERIMENT,
    service_account: Account = RUN_ACCOUNT,
    file: File = None,
    image: Image = "",
    max_rounds: MaxRounds = DEFAULT_SHAPE.max_rounds,
    arms: Arms = DEFAULT_SHAPE.has_arms,
    check_cluster: CheckCluster = True,
) -> None:
    """Make Kubeflow run the newest published version at set times, once at a time."""
    _require_name(name)
    endpoint = endpoint_from(os.environ, host, namespace)
    if remove:
        remove_schedule(connect(endpoint), NAMES[name], console)
        return
    require_cron(cron)
    path = _compiled(name, file, image, Shape(max_rounds=max_rounds, has_arms=arms))
    submission = prepare(path, NAMES[name], settings or [], console, check_cluster, config)
    _require_image(submission, image)
    api = connect(endpoint)
    found = find_experiment(api, experiment)
    pipeline_id = find_pipeline(api, submission.pipeline, shared=True)
    if not pipeline_id:
        raise ConfigError(
            f"no pipeline is called {submission.pipeline!r} on {endpoint.host}; publish it with "
            f"`chexradinet publish-pipeline {name}`"
        )
    schedule = Schedule(
        cron=require_cron(cron),
        experiment=ensure_experiment(api, found),
        pipeline_id=pipeline_id,
        account=service_account,
    )
    set_schedule(api, submission, schedule, console)


def check_cluster_command(
    host: Host = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the runs.")] = "kubeflow",
    kubeflow_namespace: Annotated[str, typer.Option(help="Namespace of Kubeflow.")] = "kubeflow",
    image: Image = "",
    memory: Annotated[str, typer.Option(help="Largest memory of a step.")] = "6Gi",
) -> None:
    """Show what an installation has of what a run needs; exit code 1 if something is missing."""
    site = Site(
        api=connect(endpoint_from(os.environ, host)),
        namespace=namespace,
        kubeflow_namespace=kubeflow_namespace,
        image=image,
        memory=memory,
    )
    if not show(check_cluster(site), console):
        raise SystemExit(1)


def acceptance_command(
    host: Host = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the runs.")] = "kubeflow",
    kubeflow_namespace: Annotated[str, typer.Option(help="Namespace of Kubeflow.")] = "kubeflow",
    image: Image = "",
    keep: Annotated[bool, typer.Option("--keep", help="Remove nothing at the end.")] = False,
) -> None:
    """Train on generated X-rays and score two nights on the installation, then remove all of it.

    A quarter of an hour on two cores. Exit code 0 only if every step held.
    """
    api = connect(endpoint_from(os.environ, host))
    shape = Shape(max_rounds=2, has_arms=True)
    acceptance = Acceptance(
        site=Site(
            api=api,
            namespace=namespace,
            kubeflow_namespace=kubeflow_namespace,
            image=image,
            memory="3Gi",
        ),
        training=load(_compiled("training", None, image, shape), TRAINING),
        nightly=load(_compiled("nightly", None, image, shape), NIGHTLY),
        console=console,
        keeps=keep,
    )
    if not acceptance.run():
        raise SystemExit(1)


def _require_name(name: str) -> None:
    if name not in NAMES:
        raise ConfigError(f"{name!r} is not a pipeline; known are {', '.join(NAMES)}")


def _compiled(name: str, file: Path | None, image: str, shape: Shape) -> Path:
    """Return the file that was given, or compile the pipeline now."""
    _require_name(name)
    if file is not None:
        return file
    if name != "training":
        compiled = compile_nightly if name == "nightly" else compile_study
        return compiled(BUILD_FOLDER, image or WORKER_IMAGE)
    return compile_training(BUILD_FOLDER, shape.max_rounds, image or WORKER_IMAGE, shape.has_arms)


def _require_image(submission: Submission, named: str) -> None:
    """Refuse a pipeline for another image than the named one, or for one that no node can pull."""
    known = definitions(submission.document)["worker_image"]
    found = require_pinned(str(known.get("defaultValue", "")))
    if named and found != named:
        raise ConfigError(
            f"{submission.path} was compiled for the image {found!r}, not for {named!r}; compile "
            "it again with --image, or leave --image and CHEXRADINET_IMAGE out"
        )
    require_registry(found, named)
