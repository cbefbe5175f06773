"""Running a compiled pipeline on this machine: the YAML that is uploaded is the YAML that runs."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from chexradinet.errors import ChexRadiNetError, ConfigError
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from pipelines.parameters import Value

ARGUMENTS_FILE, LOG_FILE = "arguments.json", "run.log"
"""What every run leaves in its folder."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_ENDED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_STAGE_LOG = re.compile(r"\[KFP Executor [^]]*?(INFO|WARNING)\]: (.*)")
_CAUSE = re.compile(r" {4}[\w.]*(Error|Interrupted): ")
"""Last line of a stage's traceback; the runner indents what stages print by four."""
_SILENT_SKIP = "Could not resolve"
"""kfp logs this where it skips a condition that it cannot evaluate, and then reports success."""

_CHATTER = ("--component_module_path", "Looking for component", "Got executor_input", "Wrote ")
_QUIET_STEPS = ("configure",)


class LocalRunError(ChexRadiNetError):
    """A local pipeline run failed; the message holds the end of the failing stage's log."""


@dataclass
class _Watcher:
    """Turns the runner's output into one line a stage."""

    console: Console
    started: dict[str, list[float]] = field(default_factory=dict)
    recent: list[str] = field(default_factory=list)
    cause: str = ""
    faults: list[str] = field(default_factory=list)

    def read(self, raw: str) -> None:
        line = _ANSI.sub("", raw).rstrip()
        if not line.strip():
            return
        self.recent = [*self.recent[-40:], line]
        if _CAUSE.match(line) and self.started:
            self.cause = line.strip()
        if _SILENT_SKIP in line:
            self.faults.append(line)
        if found := _STARTED.search(line):
            self.started.setdefault(found[1], []).append(time.monotonic())
        elif found := _ENDED.search(line):
            self._ended(found[1], found[2])
        elif found := _STAGE_LOG.search(line):
            self._said(found[1], found[2])

    def _ended(self, task: str, status: str) -> None:
        now = time.monotonic()
        # Shards of one loop share a name; the first to start is taken for the first to end.
        begun = self.started.get(task) or [now]
        seconds = now - begun.pop(0)
        if status != "SUCCESS" or not task.startswith(_QUIET_STEPS):
            mark = "done  " if status == "SUCCESS" else "FAILED"
            self.console.print(f"  {mark} {task:<18} {seconds:6.1f} s", highlight=False)

    def _said(self, level: str, message: str) -> None:
        if level == "WARNING":
            self.console.print(f"  note   {message}", highlight=False, markup=False)
        elif self.console.is_terminal and not message.startswith(_CHATTER):
            self.console.print(f"         {message}", style="dim", highlight=False, markup=False)


def run_locally(
    compiled: Path,
    arguments: Mapping[str, Value],
    run_folder: Path,
    console: Console,
    environment: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Run a compiled pipeline with kfp's subprocess runner and return its output parameters.

    Args:
        compiled: What `chexradinet compile` wrote.
        arguments: Values of the pipeline's parameters.
        run_folder: Where artifacts and the whole log (`run.log`) go; made if it is not there. State
            of unfinished stages and results of finished ones are kept in `checkpoints` beside it,
            unless the environment names another place.
        console: Where progress is shown.
        environment: Variables that the stages see beside this process's own.

    Raises:
        ConfigError: `run_folder` holds anything but an earlier run.
        LocalRunError: a stage failed, or kfp skipped a condition that it could not evaluate.
    """
    _require_run_folder(run_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    given = run_folder / ARGUMENTS_FILE
    given.write_text(json.dumps(dict(arguments), indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "pipelines.local_runner"]
    watcher = _Watcher(console)
    with (
        (run_folder / LOG_FILE).open("w", encoding="utf-8") as log,
        subprocess.Popen(
            [*command, str(compiled), str(given), str(run_folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={
                CHECKPOINT_VARIABLE: str(run_folder.resolve().parent / "checkpoints"),
                **{name: value for name, value in os.environ.items() if value},
                "PYTHONUNBUFFERED": "1",
                **(environment or {}),
            },
        ) as process,
    ):
        for line in _lines(process):
            log.write(line)
            watcher.read(line)
    if process.returncode or watcher.faults:
        cause = watcher.cause.removeprefix("chexradinet.errors.")
        shown = "\n".join(watcher.faults) or cause or "\n".join(watcher.recent[-15:])
        raise LocalRunError(f"the run failed; its log is {run_folder / LOG_FILE}\n{shown}")
    outputs: dict[str, str] = json.loads((run_folder / "outputs.json").read_text(encoding="utf-8"))
    return outputs


def _require_run_folder(run_folder: Path) -> None:
    """Refuse a folder whose files a run could replace without being one of its own."""
    if run_folder.exists() and not run_folder.is_dir():
        raise ConfigError(f"{run_folder} is a file; give the path of a folder")
    if not run_folder.exists() or next(run_folder.iterdir(), None) is None:
        return
    if not all((run_folder / name).is_file() for name in (ARGUMENTS_FILE, LOG_FILE)):
        raise ConfigError(
            f"{run_folder} is not empty and holds no earlier run ({ARGUMENTS_FILE}, {LOG_FILE}), "
            "so nothing is put there; give another path, or empty it yourself"
        )


def _lines(process: subprocess.Popen[str]) -> Iterable[str]:
    if process.stdout is None:
        return
    yield from process.stdout


def artifacts_of(run_folder: Path, name: str) -> list[Path]:
    """Return the local paths of an artifact that a run wrote, oldest first."""
    return sorted(run_folder.rglob(name), key=lambda path: path.stat().st_mtime)
