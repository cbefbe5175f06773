"""Submitting a compiled pipeline: check everything, then start a run of the published version.

All that can be known without the server is checked before it is asked, and all that it can be asked
is asked before anything is created.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kfp_server_api as kfp_api
from rich.console import Console

from chexradinet.config import require
from chexradinet.errors import ConfigError
from pipelines.api import TIMEOUT_S, Api, explained, named
from pipelines.cluster import check_accelerators
from pipelines.documents import Document
from pipelines.native import content_digest, require_pinned
from pipelines.parameters import (
    Value,
    definitions,
    load_documents,
    parse_settings,
    require_version,
)

DEFAULT_EXPERIMENT = "chexradinet"
"""Experiment that runs are listed under; the only one that is made if it does not exist."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A compiled pipeline and the checked values of its parameters."""

    path: Path
    document: Document
    platform: Document
    settings: Mapping[str, Value]
    """Parameters that were given; the others keep their defaults."""

    @property
    def pipeline(self) -> str:
        """Name of the pipeline."""
        return str(self.document["pipelineInfo"]["name"])

    @property
    def mark(self) -> str:
        """What the description of a version of this content holds."""
        return f"content sha256:{content_digest(self.document, self.platform)}"

    def value(self, name: str) -> Any:  # noqa: ANN401 - a parameter has one of six types
        """Return what a parameter will be; None if the pipeline does not have it."""
        return self.settings.get(name, definitions(self.document).get(name, {}).get("defaultValue"))


def load(path: Path, pipeline: str) -> Submission:
    """Read a compiled pipeline, without settings.

    Args:
        path: What `chexradinet compile` wrote.
        pipeline: Name that the pipeline in it must have.

    Raises:
        ConfigError: the file is missing, holds another pipeline, or one of another version of this
            project.
    """
    document, platform = load_documents(path)
    require_version(document, path)
    require(document["pipelineInfo"]["name"] == pipeline, "pipeline", str(path), f"of {pipeline}")
    return Submission(path=path, document=document, platform=platform, settings={})


def prepare(
    path: Path,
    pipeline: str,
    words: Sequence[str],
    console: Console,
    check_cluster: bool = True,
    config: Path | None = None,
) -> Submission:
    """Read a compiled pipeline and check the settings of a run; nothing is sent anywhere.

    Args:
        path: What `chexradinet compile` wrote.
        pipeline: Name that the pipeline in it must have.
        words: Parameters as `name=value`.
        console: Where a note goes when something cannot be checked.
        check_cluster: Ask kubectl whether the cluster has the accelerators.
        config: YAML file of parameters; words win over it.

    Raises:
        ConfigError: the file holds another pipeline, or one of another version of this project, a
            setting is malformed, unknown, of a wrong type or out of bounds, the image has neither
            tag nor digest, or the cluster has no such accelerator.
    """
    loaded = load(path, pipeline)
    submission = replace(loaded, settings=parse_settings(loaded.document, words, config))
    require_pinned(str(submission.value("worker_image") or ""))
    count = int(submission.value("accelerator_count") or 0)
    if check_cluster:
        kind = str(submission.value("accelerator_type") or "")
        note = check_accelerators(kind, count, submission.value("node_selector") or {})
        if note:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    return submission


def find_experiment(api: Api, name: str) -> str:
    """Return the id of the experiment of this name; empty if the default one is not there yet.

    Raises:
        ConfigError: no experiment has this name, and it is not the default.
        KubeflowError: the server refuses or cannot be reached.
    """
    listing = api.experiments.experiment_service_list_experiments
    answer = named(api, listing, "experiment", name)
    found = [one for one in answer.experiments or [] if one.display_name == name]
    if found:
        return str(found[0].experiment_id)
    if name != DEFAULT_EXPERIMENT:
        raise ConfigError(
            f"no experiment is called {name!r}; create it in the web interface, or leave "
            f"--experiment out to use {DEFAULT_EXPERIMENT!r}, which is created when needed"
        )
    return ""


def ensure_experiment(api: Api, found: str) -> str:
    """Return the experiment that was found, or create the default one.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    if found:
        return found
    wanted = kfp_api.V2beta1Experiment(
        display_name=DEFAULT_EXPERIMENT, namespace=api.endpoint.namespace
    )
    with explained(api.endpoint, f"creating the experiment {DEFAULT_EXPERIMENT!r}"):
        made = api.experiments.experiment_service_create_experiment(
            wanted, _request_timeout=TIMEOUT_S
        )
    return str(made.experiment_id)


def start(api: Api, submission: Submission, version: Any, experiment: str, account: str) -> str:  # noqa: ANN401
    """Start a run of a published version; return its id.

    Args:
        api: The server's API.
        submission: Holds the run's parameters.
        version: What `publish` returned.
        experiment: Id of the experiment.
        account: ServiceAccount of the run's pods; empty takes the installation's default.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    wanted = kfp_api.V2beta1Run(
        display_name=f"{submission.pipeline}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        experiment_id=experiment,
        pipeline_version_reference=kfp_api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
        ),
        runtime_config=kfp_api.V2beta1RuntimeConfig(parameters=dict(submission.settings)),
        service_account=account or None,
    )
    with explained(api.endpoint, "starting the run"):
        made = api.runs.run_service_create_run(wanted, _request_timeout=TIMEOUT_S)
    return str(made.run_id)
