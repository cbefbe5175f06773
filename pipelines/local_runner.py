"""The child process of a local run: executes one compiled pipeline with kfp's subprocess runner.

`python -m pipelines.local_runner COMPILED.yaml ARGUMENTS.json RUN_FOLDER`. A process of its own,
because kfp's runner takes over standard output and logging of the one it runs in.
"""

import json
import signal
import sys
import warnings
from pathlib import Path

import yaml
from kfp import components, local

from pipelines.documents import tasks
from pipelines.parameters import load_documents


def without_retries(compiled: Path) -> str:
    """Return a compiled pipeline whose tasks are tried once.

    Retries answer evictions and lost connections of a cluster; here they would only repeat a
    failing stage, minutes later, with the same result.
    """
    documents = load_documents(compiled)
    for _, _, task in tasks(documents[0]):
        task.pop("retryPolicy", None)
    return yaml.safe_dump_all([part for part in documents if part])


def main(compiled: Path, arguments: Path, run_folder: Path) -> None:
    """Run the pipeline and write its output parameters to `outputs.json`."""
    # Whoever interrupts a run signals the stage at work as well; this process waits for its end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Settings for the cluster (memory, accelerators) have no effect here, and kfp says so per task.
    warnings.simplefilter("ignore")
    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=str(run_folder), raise_on_error=True
    )
    pipeline = components.load_component_from_text(without_retries(compiled))
    task = pipeline(**json.loads(arguments.read_text(encoding="utf-8")))
    outputs = {key: value for key, value in task.outputs.items() if isinstance(value, str | float)}
    (run_folder / "outputs.json").write_text(json.dumps(outputs), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
