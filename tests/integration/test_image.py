"""The worker image itself: what is in it, that every stage runs in it, and what an eviction does.

Needs `make images` and podman or docker; `CONTAINER_ENGINE` and `CONTAINER_RUN_OPTIONS` say how.
"""

import json
import logging
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from chexradinet import __version__
from images.build import image_labels
from images.graph import Values, walk
from images.launcher import LOCKED_DOWN, Launcher, PreparedTask, container_engine
from images.run_stages import (
    DEFAULT_IMAGE,
    TRAINING_SETTINGS,
    prepare,
    run_stages,
)
from pipelines.compile import compile_training
from pipelines.parameters import load_compiled, parse_settings

pytestmark = [pytest.mark.image, pytest.mark.slow]

_log = logging.getLogger(__name__)

GRACE_PERIOD_S = 30
"""What Kubernetes gives a pod between SIGTERM and SIGKILL unless told otherwise."""

STAGES = {
    "configure", "ingest", "train", "heatmap", "radiomics", "retrain", "evaluate", "publish",
    "plan", "score", "collect", "report-outcome",
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> list[str]:
    """Return the command that runs containers; skip where there is none, or no image."""
    reason = ""
    if not (os.environ.get("CONTAINER_ENGINE") or shutil.which("podman") or shutil.which("docker")):
        reason = "podman or docker is needed"
    else:
        command = [*container_engine(), "image", "inspect", DEFAULT_IMAGE]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            reason = f"{DEFAULT_IMAGE} is not built: make images"
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; CI must not skip this test")
    if reason:
        pytest.skip(reason)
    return container_engine()


def _said(engine: list[str], script: str) -> str:
    """Run a script of shell in a locked down container and return what it prints."""
    options = shlex.split(os.environ.get("CONTAINER_RUN_OPTIONS", ""))
    done = subprocess.run(
        [*engine, "run", "--rm", *LOCKED_DOWN, *options, DEFAULT_IMAGE, "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_image_says_what_it_is(engine: list[str]) -> None:
    inspected = subprocess.run(
        [*engine, "image", "inspect", DEFAULT_IMAGE], capture_output=True, text=True, check=True
    )
    (image,) = json.loads(inspected.stdout)
    assert image["Config"]["User"] == "65532:65532"
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    licenses = image_labels(labels["io.chexradinet.flavor"])["org.opencontainers.image.licenses"]
    assert labels["org.opencontainers.image.licenses"] == licenses
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
    assert labels["io.chexradinet.flavor"] in ("gpu", "cpu")


def test_no_tool_that_installs_or_builds_is_left(engine: list[str]) -> None:
    tools = "gcc cc g++ make pip pip3 uv git curl wget"
    found = _said(engine, f"for t in {tools}; do command -v $t; done; python3 -m pip -V 2>&1; true")
    assert found.strip() == "/opt/venv/bin/python3: No module named pip"
    assert _said(engine, "find /var/lib/apt/lists /run/secrets -type f 2>/dev/null; true") == ""


def test_public_certificate_authorities_are_trusted(engine: list[str]) -> None:
    script = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    assert int(_said(engine, f'python3 -c "{script}"')) > 100
    # Kubeflow's launcher, a Go program that runs in the image, looks here.
    assert int(_said(engine, "grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")) > 100


def test_nothing_of_the_image_can_be_written_to(engine: list[str]) -> None:
    assert _said(engine, "id -u; touch /opt/venv/x 2>/dev/null || echo read-only").split() == [
        "65532",
        "read-only",
    ]


def test_the_image_imports_what_the_stages_need_and_kfp_as_its_runtime_only(
    engine: list[str],
) -> None:
    script = (
        "python3 -c 'import chexradinet, torch, torchvision, radiomics, imagecodecs, "
        "highdicom, kubernetes, minio, requests; print(chexradinet.__file__)' "
        "&& python3 -c 'import importlib.util as u; print(u.find_spec(\"kfp_server_api\"))'"
    )
    assert _said(engine, script).split() == [
        "/opt/venv/lib/python3.11/site-packages/chexradinet/__init__.py",
        "None",
    ]


def test_every_stage_runs_without_root_network_or_rights(
    engine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINER_ENGINE", shlex.join(engine))
    seconds = run_stages(prepare(DEFAULT_IMAGE, tmp_path), Console(quiet=True))
    ran = {path.rpartition(".")[2].rstrip("-0123456789") for path in seconds}
    assert ran == STAGES
    report = json.loads(next(tmp_path.glob("artifacts/evaluate/**/metrics.json")).read_text())
    assert len(report["rounds"]) >= 2
    assert list((tmp_path / "results").rglob("*.parquet")), "the night left no results"


class _ReachedError(Exception):
    """Ends a walk at the task that a test is about."""


def _train_task(work: Path, state: str) -> PreparedTask:
    """Run all before the train stage; return that stage, ready to be started."""
    settings = {**parse_words(TRAINING_SETTINGS), "epochs": "4", "batch_size": "4"}
    document = load_compiled(compile_training(work / "pipelines", max_rounds=1))
    environment = {"OMP_NUM_THREADS": "1", "CHEXRADINET_CHECKPOINT_URI": state}
    launcher = Launcher(document, prepare(DEFAULT_IMAGE, work, environment))
    found: list[PreparedTask] = []

    def launch(path: str, component: str, inputs: Values) -> Values:
        if path != "train":
            return launcher(path, component, inputs)
        found.append(launcher.prepare(path, component, inputs))
        raise _ReachedError

    words = [f"{name}={value}" for name, value in settings.items()]
    with pytest.raises(_ReachedError):
        walk(document, parse_settings(document, words), launch)
    return found[0]


def parse_words(words: tuple[str, ...]) -> dict[str, str]:
    """Return `name=value` words as a mapping."""
    return dict(word.split("=", 1) for word in words)


def _weights(work: Path) -> bytes:
    return (work / "artifacts" / "train" / "model" / "weights.safetensors").read_bytes()


def test_an_evicted_stage_keeps_its_state_in_time_and_its_retry_goes_on(
    engine: list[str], tmp_path: Path
) -> None:
    whole = _train_task(tmp_path / "whole", "")
    subprocess.run(whole.command, capture_output=True, check=True)
    task = _train_task(tmp_path / "evicted", "/state")
    state = tmp_path / "evicted" / "state"

    with subprocess.Popen(
        task.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        _wait_for_a_state(state, process)
        # As Argo's emissary does: to every process of the stage, not only to the first.
        signal_all = "import os, signal; os.kill(-1, signal.SIGTERM)"
        subprocess.run([*engine, "exec", task.container, "python3", "-c", signal_all], check=True)
        started = time.monotonic()
        log, _ = process.communicate(timeout=2 * GRACE_PERIOD_S)
        seconds = time.monotonic() - started
    _log.info("%.1f s from SIGTERM to the end of the container", seconds)
    assert process.returncode != 0, log
    assert seconds < GRACE_PERIOD_S
    (kept,) = (path.parent for path in state.glob("*/step-*/position.json"))
    assert log.count("SIGTERM: training stops after this step") == 1
    assert f"Interrupted: SIGTERM ended the training; {kept.name} is kept in /state/" in log

    retried = subprocess.run(task.command, capture_output=True, text=True, check=False)
    assert retried.returncode == 0, retried.stderr
    assert f"training continues from {kept.name}" in retried.stdout + retried.stderr
    assert _weights(tmp_path / "evicted") == _weights(tmp_path / "whole")
    assert not list(state.rglob("*.safetensors"))


def _wait_for_a_state(state: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not list(state.glob("*/step-*/position.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no state was kept"
        time.sleep(0.05)
