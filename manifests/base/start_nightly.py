"""Start tonight's run of the published nightly pipeline through the Kubeflow Pipelines API, once.

Runs in the CronJob's pod from a ConfigMap, with the standard library alone: the schedule
must not depend on what the worker image holds. A run's name carries the scheduled date, and a run
of that name that did not fail is left alone, so the Job may be retried. A Job made by hand has its
own name in the run's, so it starts another run on the same date.
"""

import http.client
import json
import logging
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

TIMEOUT_S = 30.0
TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105 - where a token is projected
ENDED_BADLY = frozenset({"FAILED", "CANCELED", "CANCELING", "SKIPPED"})
_LOG = logging.getLogger("start_nightly")


class StartError(Exception):
    """The run was not started; the message says why and what to do."""


class NotThereError(StartError):
    """The API knows no such object."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to start and where, from the environment."""

    endpoint: str
    """Address of the KFP API server, such as `http://ml-pipeline.kubeflow:8888`."""
    pipeline: str
    """Name of the uploaded pipeline."""
    experiment: str
    """Experiment that the runs are listed under."""
    namespace: str
    """Profile namespace in a multi-user installation, else empty."""
    service_account: str
    """ServiceAccount of the run's pods; empty for the installation's default."""
    parameters: Path
    """Folder with a file a run parameter, as a ConfigMap is mounted."""
    token: Path
    """Projected ServiceAccount token; need not exist in a single-user installation."""
    night: str
    """What tells this night's run from others: its date, and the name of a Job made by hand."""


def night_of(job_name: str, cron_job: str, now: datetime) -> str:
    """Return what tells a night's run from others.

    Args:
        job_name: A CronJob names its Jobs after itself and the scheduled time in minutes of Unix
            time; any other name is that of a Job made by hand.
        cron_job: Name of the CronJob.
        now: The time, in UTC.

    Returns:
        The scheduled date, YYYY-MM-DD in UTC; for a Job made by hand today's and the Job's name.
    """
    if found := re.fullmatch(rf"{re.escape(cron_job)}-(\d{{8,9}})", job_name):
        return datetime.fromtimestamp(int(found[1]) * 60, UTC).date().isoformat()
    return "-".join(part for part in (now.date().isoformat(), job_name) if part)


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        StartError: a required variable is missing.
    """
    missing = [name for name in ("KFP_ENDPOINT", "PIPELINE_NAME") if not environment.get(name)]
    if missing:
        raise StartError(
            f"{', '.join(missing)} must be set; see manifests/base/nightly-cronjob.yaml"
        )
    endpoint = environment["KFP_ENDPOINT"].rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise StartError(f"KFP_ENDPOINT is {endpoint!r}; it must begin with http:// or https://")
    return Settings(
        endpoint=endpoint,
        pipeline=environment["PIPELINE_NAME"],
        experiment=environment.get("EXPERIMENT_NAME") or environment["PIPELINE_NAME"],
        namespace=environment.get("PIPELINE_NAMESPACE", ""),
        service_account=environment.get("RUN_SERVICE_ACCOUNT", ""),
        parameters=Path(environment.get("PARAMETERS_DIRECTORY", "/etc/chexradinet/parameters")),
        token=Path(environment.get("KF_PIPELINES_SA_TOKEN_PATH") or TOKEN_PATH),
        night=night_of(
            environment.get("JOB_NAME", ""),
            environment.get("CRONJOB_NAME") or environment["PIPELINE_NAME"],
            datetime.now(UTC),
        ),
    )


def _no_number(text: str) -> NoReturn:
    raise StartError(
        f"a run parameter is {text}, which JSON does not know; give a number, or quotes around text"
    )


def run_parameters(folder: Path) -> dict[str, Any]:
    """Read a parameter from each file: its JSON value where it is JSON, else the text itself.

    Raises:
        StartError: the folder is missing, or a value is NaN or infinite.
    """
    if not folder.is_dir():
        raise StartError(f"{folder} is missing; mount the ConfigMap of run parameters there")
    parameters: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # a ConfigMap volume keeps its versions in ..data
            continue
        text = path.read_text(encoding="utf-8").strip()
        try:
            parameters[path.name] = json.loads(text, parse_constant=_no_number)
        except json.JSONDecodeError:
            parameters[path.name] = text
        except StartError as error:
            raise StartError(f"{path.name} in the ConfigMap of run parameters: {error}") from error
    return parameters


def _advice(status: int) -> str:
    return {
        400: "the pipeline's parameters and those of the ConfigMap differ; compare their names",
        401: "the token is missing or expired; check the projected token and its audience",
        403: "the ServiceAccount may not do this; check the RoleBinding and PIPELINE_NAMESPACE",
        404: "nothing has this name; upload the pipeline, or correct PIPELINE_NAME",
        429: "a quota is used up; wait, or ask for more",
    }.get(status, "look at the API server's log")


def call(
    settings: Settings, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Call the API and return its JSON answer.

    Raises:
        NotThereError: the API knows no such object.
        StartError: the API cannot be reached, refuses, or answers something else than JSON.
    """
    address = f"{settings.endpoint}/apis/v2beta1/{path}"
    data = None if body is None else json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(address, data=data, method=method)  # noqa: S310 - checked above
    request.add_header("Content-Type", "application/json")
    if settings.token.is_file():
        request.add_header("Authorization", f"Bearer {settings.token.read_text().strip()}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            found = json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        told = error.read(2000).decode(errors="replace").strip()
        message = f"{method} {path}: HTTP {error.code} {told}; {_advice(error.code)}"
        raise (NotThereError if error.code == 404 else StartError)(message) from error
    except (OSError, http.client.HTTPException) as error:
        raise StartError(
            f"{settings.endpoint} cannot be reached ({error}); check KFP_ENDPOINT and the "
            "NetworkPolicy that allows it"
        ) from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StartError(
            f"{address} answered no JSON object; KFP_ENDPOINT must be the API server, no login page"
        )
    return found


def _id(answer: dict[str, Any], name: str) -> str:
    """Return an id from an answer of the API."""
    if not answer.get(name):
        raise StartError(f"the API's answer has no {name}; is KFP_ENDPOINT a KFP 2 API server?")
    return str(answer[name])


def _named(key: str, name: str, namespace: str) -> str:
    """Return the query that lists the objects of one name, newest first."""
    predicate = {"operation": "EQUALS", "key": key, "string_value": name}
    query = {"filter": json.dumps({"predicates": [predicate]}), "page_size": "100"}
    if namespace:
        query["namespace"] = namespace
    return urllib.parse.urlencode(query | {"sort_by": "created_at desc"})


def pipeline_id(settings: Settings) -> str:
    """Return the pipeline's id: the namespace's own, else the one shared by all.

    Raises:
        StartError: no pipeline has this name.
    """
    path = f"pipelines/names/{urllib.parse.quote(settings.pipeline, safe='')}"
    own = f"{path}?{urllib.parse.urlencode({'namespace': settings.namespace})}"
    try:
        if settings.namespace:
            try:
                return _id(call(settings, "GET", own), "pipeline_id")
            except NotThereError:
                _LOG.info("no pipeline of this name in the namespace; trying the shared ones")
        return _id(call(settings, "GET", path), "pipeline_id")
    except NotThereError as error:
        raise StartError(
            f"no pipeline is called {settings.pipeline!r}; upload it with `chexradinet "
            f"publish-pipeline nightly`, or correct PIPELINE_NAME ({error})"
        ) from error


def experiment_id(settings: Settings) -> str:
    """Return the id of the experiment, which is made where it does not exist."""
    listing = f"experiments?{_named('display_name', settings.experiment, settings.namespace)}"
    found = call(settings, "GET", listing).get("experiments") or []
    if found:
        return _id(found[0], "experiment_id")
    body = {"display_name": settings.experiment, "namespace": settings.namespace}
    return _id(call(settings, "POST", "experiments", body), "experiment_id")


def start(settings: Settings) -> str:
    """Start the night's run unless it exists; return its id."""
    name = f"{settings.pipeline}-{settings.night}"
    listing = f"runs?{_named('display_name', name, settings.namespace)}"
    for run in call(settings, "GET", listing).get("runs") or []:
        if run.get("display_name") == name and run.get("state") not in ENDED_BADLY:
            _LOG.info("run %s is there already (%s): nothing to do", name, run.get("state"))
            return _id(run, "run_id")
    body = {
        "display_name": name,
        "experiment_id": experiment_id(settings),
        # Without a version the API server takes the newest.
        "pipeline_version_reference": {"pipeline_id": pipeline_id(settings)},
        "runtime_config": {"parameters": run_parameters(settings.parameters)},
    }
    if settings.service_account:
        body["service_account"] = settings.service_account
    made = _id(call(settings, "POST", "runs", body), "run_id")
    _LOG.info("started run %s (%s)", name, made)
    return made


def main() -> int:
    """Start the run; return 0 when it is there, 1 with a message when not."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        start(settings_from(os.environ))
    except StartError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
