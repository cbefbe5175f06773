"""Kubeflow's own recurring run of a published pipeline, as an alternative to the CronJob.

The API cannot change a recurring run, so one that differs is replaced: the new one is created
before the old one goes, and no night is lost if creation is refused.
"""

import re
from dataclasses import dataclass
from typing import Any

import kfp_server_api as kfp_api
from rich.console import Console

from chexradinet.errors import ConfigError
from pipelines.api import TIMEOUT_S, Api, explained, named
from pipelines.resources import RUN_ACCOUNT
from pipelines.submit import Submission
from pipelines.upload import versions

_FIELD = r"[0-9A-Za-z*/,?#LW-]+"
_CRON = re.compile(rf"{_FIELD}( {_FIELD}){{5}}|@(hourly|daily|weekly|monthly|yearly)")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to run what."""

    cron: str
    """Six fields, seconds first, as Kubeflow reads them; its time zone is UTC unless it was set."""
    experiment: str
    """Id of the experiment that the runs are listed under."""
    pipeline_id: str
    """Id of the published pipeline; each run takes the version that is newest then."""
    account: str = ""
    """ServiceAccount of the runs' pods; empty takes the installation's default."""


def require_cron(cron: str) -> str:
    """Return a cron expression that Kubeflow reads as it was meant.

    Raises:
        ConfigError: it has not six fields and is no `@daily` or the like.
    """
    words = " ".join(cron.split())
    if _CRON.fullmatch(words):
        return words
    raise ConfigError(
        f"--cron {cron!r} has {len(words.split())} fields; it needs six, seconds first, such as "
        "'0 0 2 * * *' for 02:00:00 every day"
    )


def recurring_runs(api: Api, name: str) -> list[Any]:
    """Return the recurring runs of this name.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    listing = api.recurring_runs.recurring_run_service_list_recurring_runs
    answer = named(api, listing, "recurring run", name)
    return [one for one in answer.recurring_runs or [] if one.display_name == name]


def recurring_run_of(submission: Submission, schedule: Schedule) -> kfp_api.V2beta1RecurringRun:
    """Return the recurring run of a pipeline's newest version, once at a time."""
    return kfp_api.V2beta1RecurringRun(
        display_name=submission.pipeline,
        experiment_id=schedule.experiment,
        pipeline_version_reference=kfp_api.V2beta1PipelineVersionReference(
            pipeline_id=schedule.pipeline_id
        ),
        runtime_config=kfp_api.V2beta1RuntimeConfig(parameters=dict(submission.settings)),
        trigger=kfp_api.V2beta1Trigger(
            cron_schedule=kfp_api.V2beta1CronSchedule(cron=schedule.cron)
        ),
        mode=kfp_api.RecurringRunMode.ENABLE,
        # A night that was missed is not made up for: the next plan finds its X-rays in the inbox.
        no_catchup=True,
        max_concurrency="1",
        service_account=schedule.account or None,
    )


def _meaning(one: Any) -> dict[str, Any]:  # noqa: ANN401 - the generated models are untyped
    """Return what makes two recurring runs the same; numbers compare by value, 1 as 1.0."""
    reference, trigger = one.pipeline_version_reference, one.trigger
    cron = getattr(trigger, "cron_schedule", None)
    return {
        "experiment": one.experiment_id,
        "pipeline": getattr(reference, "pipeline_id", None),
        "version": getattr(reference, "pipeline_version_id", None) or None,
        "parameters": getattr(one.runtime_config, "parameters", None) or {},
        "cron": getattr(cron, "cron", None),
        "enabled": one.mode == kfp_api.RecurringRunMode.ENABLE,
        "no_catchup": bool(one.no_catchup),
        "max_concurrency": str(one.max_concurrency),
    }


def _same(found: Any, wanted: kfp_api.V2beta1RecurringRun) -> bool:  # noqa: ANN401
    # The server fills in its own account, whose name is not known here, if none was asked for.
    account = found.service_account
    if wanted.service_account is None:
        asked_for = account != RUN_ACCOUNT
    else:
        asked_for = account == wanted.service_account
    return asked_for and _meaning(found) == _meaning(wanted)


def set_schedule(api: Api, submission: Submission, schedule: Schedule, console: Console) -> str:
    """Make the pipeline's recurring run be as wanted, exactly once; return its id.

    Raises:
        ConfigError: the cron expression is not one that Kubeflow reads.
        KubeflowError: the server refuses or cannot be reached.
    """
    require_cron(schedule.cron)
    wanted = recurring_run_of(submission, schedule)
    found = recurring_runs(api, submission.pipeline)
    same = [one for one in found if _same(one, wanted)]
    if same:
        kept = str(same[0].recurring_run_id)
        console.print(f"unchanged: {submission.pipeline} at {schedule.cron!r}", highlight=False)
    else:
        with explained(api.endpoint, "creating the recurring run"):
            made = api.recurring_runs.recurring_run_service_create_recurring_run(
                wanted, _request_timeout=TIMEOUT_S
            )
        kept = str(made.recurring_run_id)
        console.print(f"scheduled: {submission.pipeline} at {schedule.cron!r}", highlight=False)
    for one in found:
        if str(one.recurring_run_id) != kept:
            _delete(api, str(one.recurring_run_id))
            console.print(f"removed: {one.recurring_run_id}", highlight=False)
    _note_other_content(api, submission, schedule.pipeline_id, console)
    return kept


def _note_other_content(
    api: Api, submission: Submission, pipeline_id: str, console: Console
) -> None:
    newest = next(versions(api, pipeline_id), None)
    if newest is None or submission.mark not in (newest.description or ""):
        console.print(
            "note: the newest published version is not what this checkout compiles, and that "
            "version is what will run; upload this one with `chexradinet publish-pipeline`",
            highlight=False,
        )


def remove_schedule(api: Api, name: str, console: Console) -> int:
    """Delete every recurring run of a pipeline; return how many there were.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    found = recurring_runs(api, name)
    for one in found:
        _delete(api, str(one.recurring_run_id))
    console.print(f"removed: {len(found)} recurring runs of {name}", highlight=False)
    return len(found)


def _delete(api: Api, recurring_run_id: str) -> None:
    with explained(api.endpoint, "deleting the recurring run"):
        api.recurring_runs.recurring_run_service_delete_recurring_run(
            recurring_run_id, _request_timeout=TIMEOUT_S
        )
