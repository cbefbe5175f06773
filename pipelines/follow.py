"""Following a run until it ends."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console

from pipelines.api import TIMEOUT_S, Api, KubeflowError, KubeflowUnreachableError, explained

_ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
_BAD = frozenset({"FAILED", "CANCELED"})
_FAILURES_IN_A_ROW = 10


class RunFailedError(KubeflowError):
    """The run ended, and not well."""


@dataclass
class _Shown:
    """What was already told of a run."""

    state: str = ""
    tasks: set[str] = field(default_factory=set)


def follow(api: Api, run_id: str, console: Console, every_s: float = 5.0) -> None:
    """Show a run's progress until it ends.

    A server that cannot be reached for a while is asked again; the run does not need us.

    Args:
        api: Of the server that runs it.
        run_id: The run.
        console: Where progress is shown.
        every_s: Seconds between two looks.

    Raises:
        RunFailedError: the run failed or was cancelled; the message names the failed tasks.
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


def _tasks(run: Any) -> list[Any]:  # noqa: ANN401
    """Return the run's own tasks, without the driver pods that Kubeflow starts before each."""
    details = getattr(run.run_details, "task_details", None) or []
    return [task for task in details if not str(task.display_name or "").endswith("-driver")]


def _tell(run: Any, shown: _Shown, console: Console) -> None:  # noqa: ANN401
    if str(run.state) != shown.state and run.state:
        shown.state = str(run.state)
        console.print(f"  {shown.state.lower()}", highlight=False)
    for task in _tasks(run):
        if task.task_id in shown.tasks or str(task.state) not in _ENDED:
            continue
        shown.tasks.add(task.task_id)
        mark = "FAILED" if str(task.state) in _BAD else "done  "
        line = f"  {mark} {task.display_name:<24} {_seconds(task.start_time, task.end_time)}"
        console.print(line.rstrip(), highlight=False, markup=False)


def _seconds(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None or end < start:
        return ""
    return f"{(end - start).total_seconds():8.0f} s"


def _summary(run: Any) -> str:  # noqa: ANN401
    running = sorted(str(task.display_name) for task in _tasks(run) if str(task.state) == "RUNNING")
    ended = sum(str(task.state) in _ENDED for task in _tasks(run))
    return f"{ended} tasks ended; running: {', '.join(running) or 'none'}"


def _failure(api: Api, run: Any) -> str:  # noqa: ANN401
    failed = [
        f"{task.display_name}: {getattr(task.error, 'message', None) or 'see its log'}"
        for task in _tasks(run)
        if str(task.state) in _BAD
    ]
    told = getattr(run.error, "message", None)
    reasons = "; ".join([*([told] if told else []), *failed]) or "no task says why"
    return f"the run ended as {run.state} ({reasons}); {api.endpoint.run_link(run.run_id)}"
