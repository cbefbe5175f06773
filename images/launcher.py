"""Run one task of a compiled pipeline in the worker image, as Kubeflow's launcher does.

The container is as locked down as a cluster can make it: a numeric user that is not root, a
read-only root file system, no network, no capabilities, no way to new privileges.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images.graph import Specification, Values

USER = "65532:65532"
LOCKED_DOWN = (
    "--user", USER, "--read-only", "--network", "none", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges",
)  # fmt: skip
"""What every container of a step is run with."""

_BUCKET = "minio://artifacts"
_OUTPUT_FILE = "/tmp/kfp_outputs/output_metadata.json"  # noqa: S108 - a path in the container


class StageError(Exception):
    """A stage failed in its container; the message holds the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Where and how containers run."""

    image: str
    work: Path
    """Folder for artifacts, logs and what stages write to `/tmp`."""
    volumes: Mapping[Path, str] = field(default_factory=dict)
    """Folders of this machine, and where stages see them; `:ro` after the latter if read-only."""
    environment: Mapping[str, str] = field(default_factory=dict)


def container_engine() -> list[str]:
    """Return the command that runs containers: `CONTAINER_ENGINE`, podman or docker.

    Raises:
        StageError: there is none.
    """
    given = shlex.split(os.environ.get("CONTAINER_ENGINE", ""))
    if given:
        return given
    for name in ("podman", "docker"):
        if shutil.which(name):
            return [name]
    raise StageError("neither podman nor docker is there; install one, or set CONTAINER_ENGINE")


def executor_input(component: Specification, task_path: str, inputs: Values) -> dict[str, Any]:
    """Return the document that tells a step its inputs and where its outputs go."""
    outputs = component.get("outputDefinitions", {})
    return {
        "inputs": {
            "parameterValues": as_sent(inputs.parameters),
            "artifacts": {name: {"artifacts": list_} for name, list_ in inputs.artifacts.items()},
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": f"/tmp/kfp/outputs/{name}"}  # noqa: S108 - in the container
                for name in outputs.get("parameters", {})
            },
            "artifacts": {
                name: {"artifacts": [_artifact(name, definition, task_path)]}
                for name, definition in outputs.get("artifacts", {}).items()
            },
            "outputFile": _OUTPUT_FILE,
        },
    }


def as_sent(value: Any) -> Any:  # noqa: ANN401 - a parameter is any JSON value
    """Return a parameter as a step receives it: protobuf writes the number 8.0 as 8."""
    if isinstance(value, dict):
        return {name: as_sent(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_sent(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _artifact(name: str, definition: Specification, task_path: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": definition["artifactType"],
        "uri": f"{_BUCKET}/{task_path.replace('.', '/')}/{name}",
        "metadata": {},
    }


def container_command(
    container: Specification, task: Mapping[str, Any], sandbox: Sandbox, scratch: Path, name: str
) -> list[str]:
    """Return the command that runs a step's container.

    Args:
        container: Executor of the compiled pipeline: command, args, env.
        task: What `executor_input` returned.
        sandbox: Image and volumes.
        scratch: Folder that the step sees as `/tmp`.
        name: Name of the container.
    """
    given = json.dumps(task)
    words = [word.replace("{{$}}", given) for word in (*container["command"], *container["args"])]
    mounted = {sandbox.work / "artifacts": "/minio/artifacts", scratch: "/tmp", **sandbox.volumes}  # noqa: S108
    volumes = [f"{path}:{target}" for path, target in mounted.items()]
    variables = {entry["name"]: entry["value"] for entry in container.get("env", ())}
    variables |= sandbox.environment
    return [
        *container_engine(), "run", "--rm", "--name", name, *LOCKED_DOWN,
        *shlex.split(os.environ.get("CONTAINER_RUN_OPTIONS", "")),
        *(word for volume in volumes for word in ("--volume", volume)),
        *(word for key, value in variables.items() for word in ("--env", f"{key}={value}")),
        sandbox.image, *words,
    ]  # fmt: skip


@dataclass
class Launcher:
    """Runs the executors of one compiled pipeline, and notes how long each took."""

    pipeline: Specification
    sandbox: Sandbox
    seconds: dict[str, float] = field(default_factory=dict)

    def prepare(self, task_path: str, component_name: str, inputs: Values) -> "PreparedTask":
        """Make the folders that a task needs, and return the task."""
        component = self.pipeline["components"][component_name]
        task = executor_input(component, task_path, inputs)
        scratch = self.sandbox.work / "tasks" / task_path
        open_folder(scratch)
        open_folder(scratch / "kfp_outputs")
        open_folder(scratch / "kfp" / "outputs")
        open_folder(self.sandbox.work / "artifacts")
        for listed in task["outputs"]["artifacts"].values():
            local = listed["artifacts"][0]["uri"].removeprefix(f"{_BUCKET}/")
            open_folder((self.sandbox.work / "artifacts" / local).parent)
        executor = self.pipeline["deploymentSpec"]["executors"][component["executorLabel"]]
        name = f"stage-{os.getpid()}-{task_path.replace('.', '-')}"
        command = container_command(executor["container"], task, self.sandbox, scratch, name)
        return PreparedTask(task_path, name, command, task, scratch)

    def __call__(self, task_path: str, component_name: str, inputs: Values) -> Values:
        """Run a task to its end and return its outputs.

        Raises:
            StageError: the container failed.
        """
        prepared = self.prepare(task_path, component_name, inputs)
        started = time.monotonic()
        done = subprocess.run(prepared.command, capture_output=True, text=True, check=False)
        self.seconds[task_path] = time.monotonic() - started
        log = done.stdout + done.stderr
        (self.sandbox.work / "tasks" / f"{task_path}.log").write_text(log, encoding="utf-8")
        if done.returncode:
            raise StageError(f"{task_path} ended with {done.returncode}:\n{log[-3000:]}")
        return prepared.outputs()


@dataclass(frozen=True)
class PreparedTask:
    """A task whose container can be started."""

    path: str
    container: str
    command: list[str]
    input: Mapping[str, Any]
    scratch: Path

    def outputs(self) -> Values:
        """Return what the step said it wrote, read as the launcher reads it."""
        written = self.scratch / "kfp_outputs" / "output_metadata.json"
        said = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        found = Values(dict(said.get("parameterValues", {})))
        for name in self.input["outputs"]["parameters"]:
            if name not in found.parameters:
                file = self.scratch / "kfp" / "outputs" / name
                found.parameters[name] = file.read_text(encoding="utf-8")
        for name, listed in self.input["outputs"]["artifacts"].items():
            written_names = said.get("artifacts", {}).get(name, {}).get("artifacts", [{}])[0]
            merged = {**listed["artifacts"][0], "metadata": written_names.get("metadata", {})}
            found.artifacts[name] = [merged]
        return found


def open_folder(path: Path) -> None:
    """Make a folder that the container's user can write to, whoever runs the container."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
