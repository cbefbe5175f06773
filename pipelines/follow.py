"""Following a run until it ends.

Kubeflow lists each node of Argo as a task: the driver of a step, its executor, every attempt and
iteration. They are folded into the steps that the pipeline has. In a large run the list stops being
updated; what failed is then known from the pods alone.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console

from pipelines.api import TIMEOUT_S, Api, KubeflowError, KubeflowUnreachableError, explained
from pipelines.cluster import failed_pods

_ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
_BAD = frozenset({"FAILED", "CANCELED"})
_FAILURES_IN_A_ROW = 10
_DRIVER = "-driver"
_INNER = re.compile(
    r"root|executor|iteration(-item|-iterations)?|for-loop-\d+|exit-handler-\d+(\.onExit)?|.*\)"
)
"""Nodes within a step or around steps, and attempts and iterations, as `train(0)`."""


class RunFailedError(KubeflowError):
    """The run ended, and not well."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the pipeline, as the API's task list has it."""

    key: str
    """Id of the task that stands for it."""
    name: str
    state: str
    start: datetime | None
    end: datetime | None
    reason: str


@dataclass
class _Shown:
    """What was already printed about a run."""

    state: str = ""
    steps: set[str] = field(default_factory=set)


def follow(api: Api, run_id: str, console: Console, every_s: float = 5.0) -> None:
    """Show a run's progress until it ends.

    A server that cannot be reached for a while is asked again; the run does not need us.

    Args:
        api: Server that runs it.
        run_id: The run.
        console: Where progress is shown.
        every_s: Seconds between two looks.

    Raises:
        RunFailedError: the run failed or was cancelled; the message names the failed steps or pods.
        KubeflowError: the server refuses, or cannot be reached ten times in a row.
    """
    shown, failures = _Shown(), 0
    with console.status("waiting for the run to start") as status:
        while True:
            try:
                run = _run(api, run_id)
            except KubeflowUnreachableError:
                failures += 1
                if failures == _FAILURES_IN_A_ROW:
                    raise
                time.sleep(every_s)
                continue
            failures = 0
            _tell(run, shown, console)
            status.update(_summary(run))
            if str(run.state) in _ENDED:
                break
            time.sleep(every_s)
    if str(run.state) != "SUCCEEDED":
        raise RunFailedError(_failure(api, run))


def _run(api: Api, run_id: str) -> Any:  # noqa: ANN401 - the generated models are untyped
    with explained(api.endpoint, "asking for the run's state"):
        return api.runs.run_service_get_run(run_id, _request_timeout=TIMEOUT_S)


def steps_of(run: Any) -> Iterator[Step]:  # noqa: ANN401
    """Yield the steps of a run; a step whose driver failed has failed."""
    tasks = getattr(run.run_details, "task_details", None) or []
    workflows = {
        str(child.pod_name).rpartition("-")[0]
        for task in tasks
        for child in task.child_tasks or []
        if child.pod_name
    }
    for task in tasks:
        name, state = str(task.display_name or ""), str(task.state)
        reason = getattr(task.error, "message", None) or ""
        if not name or name in workflows or _INNER.fullmatch(name):
            continue
        if name.endswith(_DRIVER):
            if state not in _BAD:
                continue
            name, reason = name.removesuffix(_DRIVER), reason or "Kubeflow's driver failed"
        yield Step(task.task_id, name, state, task.start_time, task.end_time, reason)


def _tell(run: Any, shown: _Shown, console: Console) -> None:  # noqa: ANN401
    if str(run.state) != shown.state and run.state:
        shown.state = str(run.state)
        console.print(f"  {shown.state.lower()}", highlight=False)
    for step in steps_of(run):
        if step.key in shown.steps or step.state not in _ENDED:
            continue
        shown.steps.add(step.key)
        mark = "FAILED" if step.state in _BAD else "done  "
        line = f"  {mark} {step.name:<24} {_seconds(step.start, step.end)}"
        console.print(line.rstrip(), highlight=False, markup=False)


def _seconds(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None or end < start:
        return ""
    return f"{(end - start).total_seconds():8.0f} s"


def _summary(run: Any) -> str:  # noqa: ANN401
    steps = list(steps_of(run))
    running = sorted({step.name for step in steps if step.state == "RUNNING"})
    ended = sum(step.state in _ENDED for step in steps)
    return f"{ended} steps ended; running: {', '.join(running) or 'none'}"


def _failure(api: Api, run: Any) -> str:  # noqa: ANN401
    failed = [
        f"{step.name}: {step.reason or 'see its log'}"
        for step in steps_of(run)
        if step.state in _BAD
    ]
    text = getattr(run.error, "message", None)
    reasons = "; ".join([*([text] if text else []), *failed])
    pods = failed_pods(str(run.run_id), api.endpoint.namespace or "kubeflow")
    return (
        f"the run ended as {run.state} ({reasons or 'its task list names no failed step'}); "
        f"{api.endpoint.run_link(run.run_id)}\n{pods}"
    )
