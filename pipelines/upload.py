"""Publishing a compiled pipeline: a new version only if the content is new."""

from collections.abc import Iterator
from typing import Any

import kfp_server_api as kfp_api
from rich.console import Console

from chexradinet import __version__
from chexradinet.errors import ConfigError
from pipelines.api import PAGE_SIZE, TIMEOUT_S, Api, KubeflowNotFoundError, explained
from pipelines.native import version_name
from pipelines.submit import Submission


def find_pipeline(api: Api, name: str, shared: bool = False) -> str:
    """Return the id of the published pipeline of this name; empty if there is none.

    Args:
        api: The server's API.
        name: The pipeline's name.
        shared: Whether one that all profiles share will do if the namespace has none.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    namespace = api.endpoint.namespace
    for place in (namespace, "") if shared and namespace else (namespace,):
        try:
            with explained(api.endpoint, f"looking for the pipeline {name!r}"):
                found = api.pipelines.pipeline_service_get_pipeline_by_name(
                    name, namespace=place, _request_timeout=TIMEOUT_S
                )
        except KubeflowNotFoundError:
            continue
        return str(found.pipeline_id)
    return ""


def versions(api: Api, pipeline_id: str) -> Iterator[Any]:
    """Yield a pipeline's versions, newest first.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    token = ""
    while True:
        with explained(api.endpoint, "listing the pipeline's versions"):
            answer = api.pipelines.pipeline_service_list_pipeline_versions(
                pipeline_id,
                page_token=token,
                page_size=PAGE_SIZE,
                sort_by="created_at desc",
                _request_timeout=TIMEOUT_S,
            )
        yield from answer.pipeline_versions or []
        token = answer.next_page_token or ""
        if not token:
            return


def publish(api: Api, submission: Submission, pipeline_id: str, name: str, console: Console) -> Any:  # noqa: ANN401
    """Return the newest version if it has the submission's content, else upload one.

    Args:
        api: The server's API.
        submission: What to publish.
        pipeline_id: Id of the published pipeline; empty creates it.
        name: Name of a new version; empty makes one from release, image and content.
        console: Where the outcome is printed.

    Raises:
        ConfigError: a version of other content has the name that was given.
        KubeflowError: the server refuses or cannot be reached.
    """
    known = list(versions(api, pipeline_id)) if pipeline_id else []
    if known and submission.mark in (known[0].description or ""):
        shown = known[0].display_name or known[0].name
        console.print(f"unchanged: version {shown}", highlight=False)
        return known[0]
    taken = {one.name or one.display_name for one in known}
    if name and name in taken:
        raise ConfigError(
            f"version {name!r} of {submission.pipeline} exists with other content; leave "
            "--version-name out, or choose another"
        )
    if not pipeline_id:
        pipeline_id = _created_pipeline(api, submission)
    name = name or _free_name(version_name(submission.document, submission.platform), taken)
    with explained(api.endpoint, f"uploading the version {name!r}"):
        uploaded = api.uploads.upload_pipeline_version(
            str(submission.path),
            name=name,
            pipelineid=pipeline_id,
            description=f"Version {__version__}, {submission.mark}",
            _request_timeout=TIMEOUT_S,
        )
    console.print(f"uploaded: version {name}", highlight=False)
    return uploaded


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, numbered if an older version of equal content was followed by others."""
    number = 1
    while (name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return name if number == 1 else f"{name}-{number}"


def _created_pipeline(api: Api, submission: Submission) -> str:
    info = submission.document["pipelineInfo"]
    wanted = kfp_api.V2beta1Pipeline(
        name=submission.pipeline,
        display_name=info.get("displayName", submission.pipeline),
        description=info.get("description", ""),
        namespace=api.endpoint.namespace,
    )
    with explained(api.endpoint, f"creating the pipeline {submission.pipeline!r}"):
        made = api.pipelines.pipeline_service_create_pipeline(wanted, _request_timeout=TIMEOUT_S)
    return str(made.pipeline_id)
