"""Submitting: what is checked before, what is created, how refusals read."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import kfp_server_api as kfp_api
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from chexradinet.config.parameters import WORKER_IMAGE
from chexradinet.errors import ChexRadiNetError
from pipelines import remote
from pipelines.__main__ import app
from pipelines.api import connect, endpoint_from
from pipelines.compile import compile_nightly, compile_training
from pipelines.follow import follow
from pipelines.parameters import NIGHTLY, TRAINING
from pipelines.resources import RUN_ACCOUNT
from pipelines.submit import prepare

if TYPE_CHECKING:
    from tests.pipelines.conftest import FakeKubeflow
else:
    FakeKubeflow = Any

GIVEN = ["source=s3://in", "models_uri=s3://models"]
NO_GPU = "accelerator_count=0"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep this machine's own Kubeflow, kubectl and waiting out of the tests."""
    for name in ("KFP_HOST", "KFP_TOKEN", "KFP_NAMESPACE", "KFP_UI_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CHEXRADINET_IMAGE", WORKER_IMAGE)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(remote, "console", Console(width=1000))
    monkeypatch.setattr("pipelines.follow.time.sleep", lambda _: None)


@pytest.fixture
def command(kubeflow: FakeKubeflow, compiled_training: Path) -> list[str]:
    """Return a submission that can go through."""
    words = [f"--set={word}" for word in [*GIVEN, NO_GPU]]
    return ["submit", "training", *words, "--host", kubeflow.host, "--file", str(compiled_training)]


def _run(command: list[str]) -> Result:
    return CliRunner().invoke(app, command)


def _refused(command: list[str], error: str) -> None:
    result = _run(command)
    assert isinstance(result.exception, ChexRadiNetError), result.output
    assert re.search(error, str(result.exception)), str(result.exception)


def _kubectl(folder: Path, script: str) -> None:
    shim = folder / "bin" / "kubectl"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f"#!/bin/sh\n{script}\n")
    shim.chmod(0o755)


def test_a_first_submission_creates_pipeline_version_experiment_and_run(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    result = _run(command)
    assert result.exit_code == 0, result.output
    assert kubeflow.writes == [
        "POST pipelines",
        "POST pipelines/upload_version",
        "POST experiments",
        "POST runs",
    ]
    (run,) = kubeflow.runs
    assert run.pipeline_version_reference.pipeline_id == "pipeline-0"
    assert run.pipeline_version_reference.pipeline_version_id == "version-0"
    assert run.experiment_id == "experiment-0"
    assert run.runtime_config.parameters == {
        "source": "s3://in",
        "models_uri": "s3://models",
        "accelerator_count": 0,
    }
    assert f"{kubeflow.host}/#/runs/details/run-0" in result.output
    assert "succeeded" in result.output


def test_the_commands_of_the_readme_go_through(
    kubeflow: FakeKubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (forwarded,) = re.findall(r"port-forward svc/ml-pipeline-ui (\d+):80 &", text)
    (exported,) = re.findall(r"^ {4}export (.+)$", text, re.MULTILINE)
    environment = dict(word.split("=", 1) for word in shlex.split(exported))
    assert environment["KFP_HOST"] == f"http://localhost:{forwarded}"
    for name, value in (environment | {"KFP_HOST": kubeflow.host}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for line in re.findall(
        r"chexradinet ((?:publish-pipeline|submit) .+)", text.replace("\\\n", "")
    ):
        words = shlex.split(line.replace("publish-pipeline", "publish"))
        assert _run(words).exit_code == 0, line
    assert [one.name for one in kubeflow.pipelines] == [TRAINING, NIGHTLY]
    (run,) = kubeflow.runs
    assert run.runtime_config.parameters["accelerator_count"] == 0


def test_what_is_uploaded_is_the_compiled_file(
    kubeflow: FakeKubeflow, command: list[str], compiled_training: Path
) -> None:
    _run([*command, "--no-wait"])
    assert compiled_training.read_bytes() in kubeflow.uploaded[0]


def test_publishing_uploads_and_starts_nothing(kubeflow: FakeKubeflow, command: list[str]) -> None:
    publishing = ["publish", "training", *command[-4:]]
    assert _run(publishing).exit_code == 0
    assert kubeflow.writes == ["POST pipelines", "POST pipelines/upload_version"]
    assert "unchanged" in _run(publishing).output
    assert _run([*command, "--no-wait"]).exit_code == 0
    assert len(kubeflow.versions) == 1


def test_the_same_content_is_not_uploaded_twice(kubeflow: FakeKubeflow, command: list[str]) -> None:
    _run([*command, "--no-wait"])
    kubeflow.requests.clear()
    result = _run([*command, "--no-wait"])
    assert kubeflow.writes == ["POST runs"]
    assert kubeflow.runs[1].pipeline_version_reference.pipeline_version_id == "version-0"
    assert "unchanged" in result.output


def test_comments_and_order_in_the_file_make_no_new_version(
    kubeflow: FakeKubeflow, command: list[str], compiled_training: Path, tmp_path: Path
) -> None:
    _run([*command, "--no-wait"])
    changed = tmp_path / "training.yaml"
    changed.write_text("# another comment\n" + compiled_training.read_text())
    _run([*command[:-1], str(changed), "--no-wait"])
    assert len(kubeflow.versions) == 1


def test_changed_content_makes_a_new_version_and_going_back_another(
    kubeflow: FakeKubeflow, command: list[str], compiled_training: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "training.yaml"
    text = compiled_training.read_text()
    changed.write_text(text.replace("defaultValue: resnet50", "defaultValue: resnet34"))
    for path in (compiled_training, changed, compiled_training):
        assert _run([*command[:-1], str(path), "--no-wait"]).exit_code == 0
    names = [one.name for one in kubeflow.versions]
    assert len(set(names)) == 3
    assert names[2] == f"{names[0]}-2"
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    assert kubeflow.runs[2].pipeline_version_reference.pipeline_version_id == "version-2"


def test_a_version_name_that_is_taken_by_other_content_is_refused(
    kubeflow: FakeKubeflow, command: list[str], compiled_training: Path, tmp_path: Path
) -> None:
    _run([*command, "--no-wait", "--version-name", "release"])
    assert kubeflow.versions[0].name == "release"
    changed = tmp_path / "training.yaml"
    changed.write_text(compiled_training.read_text().replace("resnet50", "resnet34"))
    kubeflow.requests.clear()
    _refused([*command[:-1], str(changed), "--version-name", "release"], "exists with other cont")
    assert kubeflow.writes == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--set=rounds"], r"--set 'rounds' is malformed; it must read name=value"),
        (["--set=round=2"], r"unknown parameter 'round'; did you mean 'rounds'"),
        (["--set=rounds=two"], r"rounds is 'two'; it must be a whole number"),
        (["--set=worker_image=registry:5000/worker"], r"has no tag and no digest"),
        (["--set=worker_image="], r"worker_image is ''; it must be given"),
        (["--set=training_memory=16 GB"], r"training_memory is '16 GB'; it must be a Kubernetes"),
        (["--set=accelerator_count=-1"], r"accelerator_count is -1; it must be at least 0"),
    ],
)
def test_a_bad_setting_is_refused_before_the_server_is_asked(
    kubeflow: FakeKubeflow, command: list[str], words: list[str], error: str
) -> None:
    _refused([*command, *words], error)
    assert kubeflow.requests == []


@pytest.mark.parametrize("word", ["publish", "submit", "schedule"])
def test_an_image_without_a_registry_is_refused_unless_it_was_named(
    kubeflow: FakeKubeflow,
    compiled_nightly: Path,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    monkeypatch.delenv("CHEXRADINET_IMAGE")
    place = ["--host", kubeflow.host, "--file", str(compiled_nightly)]
    words = [f"--set={name}_uri=s3://b" for name in ("inbox", "models", "results")]
    command = [word, "nightly", *place, *([] if word == "publish" else words)]
    _refused(command, f"image '{WORKER_IMAGE}', which names no registry.*add --image registry")
    assert kubeflow.requests == []
    if word == "schedule":
        _run(["publish", "nightly", *place, "--image", WORKER_IMAGE])
    assert _run([*command, "--image", WORKER_IMAGE]).exit_code == 0


def test_a_file_for_another_image_than_the_named_one_is_refused(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    _refused([*command, "--image", "other/worker:2"], "was compiled for the image .*not for 'other")
    assert kubeflow.requests == []


def test_an_image_of_a_registry_needs_no_more_words(
    kubeflow: FakeKubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CHEXRADINET_IMAGE")
    compiled = compile_nightly(tmp_path, image="registry.example.org/worker:1")
    _run(["publish", "nightly", "--host", kubeflow.host, "--file", str(compiled)])
    assert len(kubeflow.versions) == 1


def test_the_image_in_the_environment_and_the_option_make_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = "registry.example.org/worker:1"
    by_option = compile_training(tmp_path / "option", max_rounds=1, image=image)
    folder = tmp_path / "environment"
    code = f"from pipelines.compile import *; compile_training(Path({str(folder)!r}), 1)"
    monkeypatch.setenv("CHEXRADINET_IMAGE", image)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (folder / "training.yaml").read_text() == by_option.read_text()


def test_runs_get_the_account_with_the_fewest_rights_unless_another_is_asked_for(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    for words in ([], ["--service-account", "other"], ["--service-account", ""]):
        assert _run([*command, "--no-wait", *words]).exit_code == 0
    assert [run.service_account for run in kubeflow.runs] == [RUN_ACCOUNT, "other", None]


def test_a_file_of_another_version_is_refused_before_the_server_is_asked(
    kubeflow: FakeKubeflow, command: list[str], compiled_training: Path, tmp_path: Path
) -> None:
    old = tmp_path / "training.yaml"
    old.write_text(re.sub(r"Version \d[^\s]*\.", "Version 0.0.1.", compiled_training.read_text()))
    _refused([*command[:-1], str(old)], r"compiled by version 0\.0\.1")
    assert kubeflow.requests == []


def test_a_file_of_another_pipeline_is_refused(command: list[str], compiled_nightly: Path) -> None:
    _refused([*command[:-1], str(compiled_nightly)], "must be of chexradinet-training")


def test_an_unknown_pipeline_name_and_a_missing_host_are_refused(command: list[str]) -> None:
    _refused(["submit", "weekly"], "'weekly' is not a pipeline; known are training, nightly")
    without_host = [word for word in command if not word.startswith(("--host", "http"))]
    _refused(without_host, "no Kubeflow host is given; add --host .* svc/ml-pipeline-ui 8080:80")
    _refused([*command, "--host", "ml-pipeline:8888"], "must begin with http")


def test_the_guide_has_every_variable_that_says_where_kubeflow_is() -> None:
    root = Path(__file__).resolve().parents[2]
    read = set(re.findall(r'"(KFP_[A-Z_]+)"', (root / "pipelines" / "api.py").read_text()))
    assert len(read) == 5
    guide = (root / "docs" / "operations.md").read_text(encoding="utf-8")
    assert read == set(re.findall(r"^\| `(KFP_[A-Z_]+)`", guide, re.MULTILINE))


def test_a_wrong_host_is_named(command: list[str]) -> None:
    _refused([*command, "--host", "http://127.0.0.1:1"], r"127\.0\.0\.1:1 cannot be reached")


def test_a_login_page_is_not_taken_for_the_api(kubeflow: FakeKubeflow, command: list[str]) -> None:
    kubeflow.content_type = "text/html"
    _refused(command, "answers text/html, not JSON: it is a login page")
    assert kubeflow.writes == []


def test_an_expired_token_is_refused_and_never_shown(
    kubeflow: FakeKubeflow, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeflow.bearer = "fresh"
    monkeypatch.setenv("KFP_TOKEN", "stale-secret")
    _refused(command, "HTTP 401, .*the token is missing or expired: set KFP_TOKEN")
    assert "stale-secret" not in _run(command).output
    assert "stale-secret" not in repr(endpoint_from({"KFP_TOKEN": "stale-secret"}, kubeflow.host))
    monkeypatch.setenv("KFP_TOKEN", "fresh")
    assert _run(command).exit_code == 0


def test_a_projected_token_is_read_again_when_it_was_renewed(
    kubeflow: FakeKubeflow, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    environment = {"KF_PIPELINES_SA_TOKEN_PATH": str(path)}
    kubeflow.bearer = "first"
    api = connect(endpoint_from(environment, kubeflow.host))
    kubeflow.bearer = "second"
    path.write_text("second\n")
    api.pipelines.pipeline_service_list_pipeline_versions("any", sort_by="created_at desc")


def test_an_unknown_experiment_is_refused_before_anything_is_created(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    _refused([*command, "--experiment", "mine"], "no experiment is called 'mine'")
    assert kubeflow.writes == []
    kubeflow.experiments.append(kfp_api.V2beta1Experiment(experiment_id="e", display_name="mine"))
    assert _run([*command, "--experiment", "mine"]).exit_code == 0
    assert kubeflow.runs[0].experiment_id == "e"


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (403, "exceeded quota: chexradinet", "a quota is used up"),
        (429, "too many requests", "a quota is used up"),
        (403, "user is not authorized", "the account may not do this: check --namespace"),
        (400, "invalid input", "did not accept the request"),
        (500, "database is gone", "the API server failed"),
    ],
)
def test_a_refused_run_says_why(
    kubeflow: FakeKubeflow, command: list[str], status: int, message: str, error: str
) -> None:
    kubeflow.refuse["POST runs"] = (status, message)
    _refused(command, f"starting the run: HTTP {status}, {message}.*{error}")


def test_a_cluster_without_accelerators_is_known_before_the_server_is_asked(
    kubeflow: FakeKubeflow, command: list[str], tmp_path: Path
) -> None:
    _kubectl(tmp_path, """echo '{"items": [{"status": {"allocatable": {"cpu": "4"}}}]}'""")
    asks = [*command, "--set=accelerator_count=1"]
    _refused(asks, r"each step asks for 1 x nvidia.com/gpu, but of 1 nodes the best offers 0")
    assert kubeflow.requests == []
    assert _run([*asks, "--no-check-cluster"]).exit_code == 0


def test_accelerators_count_only_on_nodes_that_the_selector_takes(
    command: list[str], tmp_path: Path
) -> None:
    nodes = (
        '{"items": [{"metadata": {"labels": {"pool": "b"}},'
        ' "status": {"allocatable": {"nvidia.com/gpu": "2"}}}]}'
    )
    _kubectl(tmp_path, f"echo '{nodes}'")
    asks = [*command, "--set=accelerator_count=2"]
    assert _run([*asks, '--set=node_selector={"pool": "b"}']).exit_code == 0
    _refused([*asks, '--set=node_selector={"pool": "a"}'], "offers 0")
    _refused([*asks, "--set=accelerator_count=3"], "offers 2")


@pytest.mark.parametrize(
    ("script", "note"),
    [
        (None, "kubectl is not installed"),
        ("echo 'connection refused' >&2; exit 1", "kubectl says 'connection refused'"),
        ("echo hello", "kubectl's output is not JSON"),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_noted_and_does_not_stop_the_run(
    command: list[str], tmp_path: Path, script: str | None, note: str
) -> None:
    if script is not None:
        _kubectl(tmp_path, script)
    result = _run([*command, "--set=accelerator_count=1"])
    assert result.exit_code == 0
    assert f"cannot tell whether the cluster has 1 x nvidia.com/gpu: {note}" in result.output


def _recorded(kubeflow: FakeKubeflow, shared_data: Path, name: str) -> None:
    """Let the server answer as a real one did."""
    text = (shared_data / "kfp_api" / f"{name}.json").read_text(encoding="utf-8")
    run = kubeflow.client.deserialize(SimpleNamespace(data=text), "V2beta1Run")
    kubeflow.tasks = run.run_details.task_details
    kubeflow.states = ["RUNNING", run.state]


def _lines(output: str) -> list[tuple[str, str]]:
    found = re.findall(r"^  (done  |FAILED) (\S+) +\d+ s$", output, re.MULTILINE)
    return [(mark.strip(), name) for mark, name in found]


def test_a_recorded_night_is_shown_by_its_own_steps_each_once(
    kubeflow: FakeKubeflow, command: list[str], shared_data: Path
) -> None:
    _recorded(kubeflow, shared_data, "nightly-succeeded")
    result = _run(command)
    assert result.exit_code == 0
    assert _lines(result.output) == [
        ("done", name) for name in ("plan", "score-shards", "score", "collect", "report-outcome")
    ]


def test_a_recorded_training_that_is_listed_as_running_has_succeeded(
    kubeflow: FakeKubeflow, command: list[str], shared_data: Path
) -> None:
    _recorded(kubeflow, shared_data, "training-succeeded")
    assert any(task.display_name == "root" and task.state == "RUNNING" for task in kubeflow.tasks)
    result = _run(command)
    assert result.exit_code == 0
    shown = {name: mark for mark, name in _lines(result.output)}
    assert {"ingest", "train", "heatmap", "radiomics"} <= set(shown)
    assert set(shown.values()) == {"done"}


def test_a_recorded_failure_is_named_by_its_step(
    kubeflow: FakeKubeflow, command: list[str], shared_data: Path
) -> None:
    _recorded(kubeflow, shared_data, "nightly-failed")
    _refused(command, r"ended as FAILED \(plan: see its log\); http.*/runs/details/run-0")


def test_a_recorded_failure_of_a_driver_is_one_of_its_step(
    kubeflow: FakeKubeflow, command: list[str], shared_data: Path
) -> None:
    _recorded(kubeflow, shared_data, "training-blocked")
    _refused(command, r"ended as FAILED \(guided-round: Kubeflow's driver failed\); http")


def test_where_the_task_list_is_frozen_the_failed_pod_and_its_log_are_shown(
    kubeflow: FakeKubeflow, command: list[str], shared_data: Path, tmp_path: Path
) -> None:
    _recorded(kubeflow, shared_data, "training-two-rounds-three-arms")
    pod = {
        "metadata": {
            "name": "chexradinet-training-d6pzt-system-container-impl-7",
            "annotations": {
                "workflows.argoproj.io/node-name": (
                    "chexradinet-training-d6pzt(0).root(0).guided-round-2(0).retrain-3(0).executor(0)"
                )
            },
        }
    }
    answer = tmp_path / "pods.json"
    answer.write_text(json.dumps({"items": [pod]}))
    log = tmp_path / "log"
    log.write_text(
        "TrainingError: loss is nan\n"
        "F1127 05:04:09.037872      16 main.go:59] failed to execute component: exit status 1\n"
        'time=2026-11-27T05:04:09.184Z level=INFO msg="sub-process exited" argo=true\n'
        "Error: exit status 1\n"
    )
    _kubectl(tmp_path, f'case "$1" in logs) /bin/cat {log};; *) /bin/cat {answer};; esac')
    _refused(
        command,
        r"names no failed step\).*\n"
        r"pod chexradinet-training-d6pzt-system-container-impl-7 "
        r"\(guided-round-2\.retrain-3\.executor\) failed:\n"
        r"    TrainingError: loss is nan\n"
        r"    all of it: kubectl logs --namespace kubeflow chexradinet-training-d6pzt-\S+ "
        r"--container main",
    )


def test_without_kubectl_the_command_that_shows_the_failed_pod_is_named(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    kubeflow.states = ["FAILED"]
    _refused(
        command, r"shows: kubectl get pods --namespace kubeflow --selector pipeline/runid=run-0"
    )


def test_a_cancelled_run_is_no_success(kubeflow: FakeKubeflow, command: list[str]) -> None:
    kubeflow.states = ["CANCELED"]
    _refused(command, "ended as CANCELED")


def test_following_outlives_a_server_that_is_away_for_a_while(
    kubeflow: FakeKubeflow, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run([*command, "--no-wait"])
    api = connect(endpoint_from({}, kubeflow.host))
    kubeflow.refuse["GET runs/run-0"] = (503, "starting")
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 9:  # nine failures, one answer, and nine failures again
            kubeflow.states = ["RUNNING"]
            del kubeflow.refuse["GET runs/run-0"]
        elif len(looks) == 10:
            kubeflow.refuse["GET runs/run-0"] = (503, "starting")
        elif len(looks) == 19:
            kubeflow.states = ["SUCCEEDED"]
            del kubeflow.refuse["GET runs/run-0"]

    monkeypatch.setattr("pipelines.follow.time.sleep", wait)
    follow(api, "run-0", Console(quiet=True))
    assert len(looks) == 19


def test_following_gives_up_when_the_server_stays_away(
    kubeflow: FakeKubeflow, command: list[str]
) -> None:
    kubeflow.refuse["GET runs/run-0"] = (503, "starting")
    _refused(command, "the API server failed")
    assert kubeflow.requests.count("GET runs/run-0") == 10


def test_ctrl_c_leaves_the_run_going_and_says_where_it_is(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "follow", interrupted)
    result = _run(command)
    assert result.exit_code == 130
    assert "the run continues: http" in result.output


def test_the_commands_exit_with_1_and_one_line_where_they_fail() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "submit", "weekly"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout.startswith("error: 'weekly' is not a pipeline")
    assert "Traceback" not in done.stdout + done.stderr


def test_prepare_keeps_only_what_was_set(compiled_training: Path) -> None:
    ready = prepare(compiled_training, TRAINING, [*GIVEN, NO_GPU], Console(quiet=True))
    assert dict(ready.settings) == {
        "source": "s3://in",
        "models_uri": "s3://models",
        "accelerator_count": 0,
    }
    assert ready.value("rounds") == 2
