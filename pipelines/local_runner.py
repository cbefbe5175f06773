"""The child process of a local run: executes one compiled pipeline with kfp's subprocess runner.

A process of its own, because kfp's runner takes over standard output and logging of the one it runs
in. Stages are forked from a server that has imported what most of them need, which took some stages
longer than their work. kfp has no setting for that, so its function that starts a stage's command
is replaced; should a release rename it, stages start as kfp starts them.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import yaml

from pipelines.documents import tasks
from pipelines.parameters import load_documents

_FORKSERVER = multiprocessing.get_context("forkserver")
_IMPORTED = (
    "kfp.dsl.executor_main", "chexradinet.config.parameters", "cv2", "pandas", "pyarrow.parquet",
    "pydicom", "torchvision.models",
)  # fmt: skip


def start_server() -> None:
    """Start the server that stages are forked from; its imports run beside this process's own.

    It ignores SIGTERM, which whoever interrupts a run sends to the stage at work as well.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a new process inherits
    os.environ["_KFP_RUNTIME"] = "true"  # stages need a small part of kfp
    _FORKSERVER.set_forkserver_preload([*_IMPORTED])
    forkserver.ensure_running()
    del os.environ["_KFP_RUNTIME"]


def run_stage(full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
    """Run a stage in a process of its own, print what it says, and return its exit status.

    Args:
        full_command: A shell's words, the source of the component, and the executor's arguments.
        env_vars: Variables beside those of this process.
    """
    _, _, _, source, *arguments = full_command
    reader, writer = _FORKSERVER.Pipe(duplex=False)
    given = (writer, source, arguments, {"_KFP_RUNTIME": "true", **(env_vars or {})})
    stage = _FORKSERVER.Process(target=_work, args=given)
    stage.start()
    writer.close()
    with reader, open(reader.fileno(), errors="replace", closefd=False) as said:
        for line in said:
            print(line, end="")  # noqa: T201 - kfp indents what is printed
    stage.join()
    return stage.exitcode or 0


def _work(said: Connection, source: str, arguments: list[str], environment: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    said.close()
    os.environ.update(environment)
    from kfp.dsl.executor_main import executor_main

    with tempfile.TemporaryDirectory() as folder:
        component = Path(folder) / "ephemeral_component.py"
        component.write_text(source, encoding="utf-8")
        sys.argv = [sys.argv[0], "--component_module_path", str(component), *arguments]
        executor_main()


def without_retries(compiled: Path) -> str:
    """Return a compiled pipeline whose tasks are tried once.

    Retries answer evictions and lost connections of a cluster; here they would only repeat a
    failing stage, minutes later, with the same result.
    """
    documents = load_documents(compiled)
    for _, _, task in tasks(documents[0]):
        task.pop("retryPolicy", None)
    return yaml.safe_dump_all([part for part in documents if part])


def main() -> None:
    """Run the pipeline: `COMPILED.yaml ARGUMENTS.json RUN_FOLDER`.

    Its output parameters go into `outputs.json`.
    """
    compiled, arguments, run_folder = map(Path, sys.argv[1:])
    start_server()
    # Whoever interrupts a run signals the stage at work as well; this process waits for its end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    from kfp import components, local  # takes a second, as the server's imports do
    from kfp.local import subprocess_task_handler

    subprocess_task_handler.run_local_subprocess = run_stage
    # Settings for the cluster (memory, accelerators) have no effect here, and kfp says so per task.
    warnings.simplefilter("ignore")
    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=str(run_folder), raise_on_error=True
    )
    pipeline = components.load_component_from_text(without_retries(compiled))
    task = pipeline(**json.loads(arguments.read_text(encoding="utf-8")))
    outputs = {key: value for key, value in task.outputs.items() if isinstance(value, str | float)}
    (run_folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
