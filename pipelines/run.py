"""Running a compiled pipeline on this machine: the YAML that is uploaded is the YAML that runs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TextIO

from rich.console import Console

from chexradinet.errors import ChexRadiNetError, ConfigError
from chexradinet.monitoring import PROGRESS_VARIABLE
from chexradinet.parallel import on_signals
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from pipelines.documents import tasks
from pipelines.parameters import Value, load_compiled
from pipelines.watching import STARTED, Watcher

ARGUMENTS_FILE, LOG_FILE = "arguments.json", "run.log"
"""What every run leaves in its folder."""


class LocalRunError(ChexRadiNetError):
    """A local pipeline run failed; the message holds the end of the failing stage's log."""


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
        ConfigError: `run_folder` holds anything but an earlier run, or several nodes are asked for.
        LocalRunError: a stage failed, or kfp skipped a condition that it could not evaluate.
        KeyboardInterrupt: the run was interrupted, and the stage at work has ended.
    """
    if (num_nodes := arguments.get("num_nodes", 1)) != 1:
        raise ConfigError(
            f"num_nodes is {num_nodes}; this machine is one node: leave it out here, or start the "
            "run on a cluster with Kubeflow Trainer by `chexradinet submit`"
        )
    _require_run_folder(run_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    given = run_folder / ARGUMENTS_FILE
    given.write_text(json.dumps(dict(arguments), indent=1), encoding="utf-8")
    titles = {
        task["componentRef"]["name"].removeprefix("comp-"): task["taskInfo"]["name"]
        for _, _, task in tasks(load_compiled(compiled))
    }
    with (
        (run_folder / LOG_FILE).open("w", buffering=1, encoding="utf-8") as log,
        Watcher(console, titles) as watcher,
        on_signals(_interrupt, signal.SIGTERM),
        _runner([str(compiled), str(given), str(run_folder)], run_folder, environment) as process,
    ):
        try:
            for line in process.stdout or ():
                log.write(line)
                watcher.read(line)
        except KeyboardInterrupt:
            watcher.note("stopping; the stage at work keeps its state (Ctrl-C again: at once)")
            _stop(process, log)
            raise
    if process.returncode or watcher.faults:
        cause = watcher.cause.removeprefix("chexradinet.errors.")
        shown = "\n".join(watcher.faults) or cause or "\n".join(watcher.recent[-15:])
        raise LocalRunError(f"the run failed; its log is {run_folder / LOG_FILE}\n{shown}")
    outputs: dict[str, str] = json.loads((run_folder / "outputs.json").read_text(encoding="utf-8"))
    return outputs


def _runner(
    words: list[str], run_folder: Path, environment: Mapping[str, str] | None
) -> subprocess.Popen[str]:
    """Start the process that runs a pipeline, in a session that the terminal's Ctrl-C spares."""
    return subprocess.Popen(
        # By -c, since each stage would import what was started by -m.
        [sys.executable, "-c", "from pipelines.local_runner import main; main()", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={
            CHECKPOINT_VARIABLE: str(run_folder.resolve().parent / "checkpoints"),
            PROGRESS_VARIABLE: "1",
            **{name: value for name, value in os.environ.items() if value},
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        },
    )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Take SIGTERM for Ctrl-C: a run must not go on without whoever started it."""
    raise KeyboardInterrupt


def _stop(process: subprocess.Popen[str], log: TextIO) -> None:
    """End the stage at work, which keeps its state, and start no other; a second Ctrl-C kills."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, signal.SIGTERM)
            for line in process.stdout or ():
                log.write(line)
                if STARTED.search(line):
                    break
        except KeyboardInterrupt:
            log.write("killed\n")
        finally:
            os.killpg(process.pid, signal.SIGKILL)


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


def artifacts_of(run_folder: Path, name: str) -> list[Path]:
    """Return the local paths of an artifact that a run wrote, oldest first."""
    return sorted(run_folder.rglob(name), key=lambda path: path.stat().st_mtime)
