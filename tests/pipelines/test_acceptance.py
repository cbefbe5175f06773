"""The acceptance's own conduct: what it runs in the store, and how it ends when a step fails."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from chexradinet.errors import ChexRadiNetError
from chexradinet.model import training
from chexradinet.training import processes
from pipelines import remote
from pipelines.__main__ import app
from pipelines.acceptance_cluster import FIRST_EPOCH, KEPT, RESUMED
from pipelines.store_job import bucket_job_template, run_store_job
from tests.pipelines.test_check_cluster import IMAGE, Cluster

if TYPE_CHECKING:
    from tests.pipelines.conftest import FakeKubeflow
else:
    FakeKubeflow = Any

BUCKETS = {
    "spec": {
        "template": {
            "metadata": {
                "labels": {
                    "app.kubernetes.io/name": "buckets",
                    "controller-uid": "1",
                    "job-name": "b",
                }
            },
            "spec": {
                "containers": [
                    {
                        "image": IMAGE,
                        "command": ["make-buckets"],
                        "env": [{"name": "AWS_ENDPOINT_URL", "value": "http://store:9000"}],
                        "securityContext": {"readOnlyRootFilesystem": True},
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
            },
        }
    },
    "status": {"succeeded": 1},
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CHEXRADINET_IMAGE", IMAGE)
    monkeypatch.setattr(remote, "console", Console(width=1000))
    monkeypatch.chdir(tmp_path)
    cluster = Cluster(tmp_path)
    shim = tmp_path / "bin" / "kubectl"
    script = shim.read_text().splitlines()
    kept = (
        f'echo "$@" >> {tmp_path}/calls; case "$1" in apply) /bin/cat > {tmp_path}/applied; exit;;'
    )
    ends = f"logs) /bin/cat {tmp_path}/log; exit;; delete) exit;; esac"
    shim.write_text("\n".join([script[0], f"{kept} {ends}", *script[1:]]))
    cluster.has("job", "chexradinet-buckets", BUCKETS)
    (tmp_path / "log").write_text("done\n")
    return cluster


def test_a_script_runs_as_the_bucket_job_does_and_its_job_is_removed(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.has("job", "prepare", {"status": {"succeeded": 1}})
    template = bucket_job_template()
    for name in ("prepare", "prepare"):
        run_store_job(template, name, "print('done')")
    made = yaml.safe_load((tmp_path / "applied").read_text())
    ours = made["spec"]["template"]
    (container,) = ours["spec"]["containers"]
    assert container["command"] == ["python3", "-c", "print('done')"]
    for name in ("image", "env", "securityContext"):
        assert container[name] == BUCKETS["spec"]["template"]["spec"]["containers"][0][name]  # type: ignore[index]
    assert ours["metadata"]["labels"] == {"app.kubernetes.io/name": "buckets"}
    assert made["spec"]["backoffLimit"] == 0
    calls = (tmp_path / "calls").read_text()
    assert "delete job prepare --namespace chexradinet-store" in calls
    assert calls.count("get job chexradinet-buckets") == 1


def test_a_script_that_fails_ends_with_its_log(cluster: Cluster, tmp_path: Path) -> None:
    cluster.has("job", "prepare", {"status": {"failed": 1}})
    (tmp_path / "log").write_text("AccessDenied\n")
    with pytest.raises(ChexRadiNetError, match="job prepare failed: AccessDenied"):
        run_store_job(bucket_job_template(), "prepare", "")


def test_an_installation_that_lacks_something_is_not_touched(
    kubeflow: FakeKubeflow, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.lacks("secret", "chexradinet-deidentification")
    result = CliRunner().invoke(app, ["acceptance", "--host", kubeflow.host, "--image", IMAGE])
    assert result.exit_code == 1
    assert "secret chexradinet-deidentification" in " ".join(result.output.split())
    assert kubeflow.writes == []
    assert "apply" not in (tmp_path / "calls").read_text()


def test_the_api_server_alone_is_refused_before_anything_is_made(
    kubeflow: FakeKubeflow, cluster: Cluster, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["acceptance", "--host", kubeflow.host, "--image", IMAGE])
    assert result.exit_code == 1
    assert "is the API server alone; set KFP_HOST" in " ".join(result.output.split())
    assert "apply" not in (tmp_path / "calls").read_text()


@pytest.fixture
def store_jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the scripts that are run in the store, by the end of their Jobs' names."""
    ran: dict[str, str] = {}

    def job(template: dict[str, Any], name: str, script: str) -> None:
        assert template == BUCKETS["spec"]["template"]  # type: ignore[index]
        ran[name.rpartition("-")[2]] = script

    monkeypatch.setattr("pipelines.acceptance.run_store_job", job)
    monkeypatch.setattr("pipelines.acceptance.require_web_interface", lambda api: None)
    return ran


def test_a_step_that_fails_ends_the_acceptance_and_what_was_made_is_removed(
    kubeflow: FakeKubeflow, cluster: Cluster, store_jobs: dict[str, str]
) -> None:
    kubeflow.refuse["POST runs"] = (403, "not allowed")
    result = CliRunner().invoke(app, ["acceptance", "--host", kubeflow.host, "--image", IMAGE])
    assert result.exit_code == 1
    assert list(store_jobs) == ["prepare", "clean"]
    for bucket in ("training", "inbox", "models", "results"):
        assert f"'s3://chexradinet-{bucket}/acceptance-" in store_jobs["clean"]
    lines = [line.split() for line in result.output.splitlines()]
    states = {" ".join(words[:2]): "FAILED" in words for words in lines if words}
    assert states["upload phantoms"] is False
    assert states["training: two"] is True
    assert states["remove what"] is False
    assert not any(line[:1] == ["night"] for line in lines)
    assert (len(kubeflow.uploaded), kubeflow.pipelines, kubeflow.versions) == (2, [], [])


def test_versions_that_were_there_before_stay_and_a_failed_removal_does_not_stop_the_others(
    kubeflow: FakeKubeflow, cluster: Cluster, store_jobs: dict[str, str]
) -> None:
    published = ["publish", "training", "--host", kubeflow.host, "--image", "registry/other:1"]
    assert CliRunner().invoke(app, published).exit_code == 0
    (before,) = kubeflow.versions
    kubeflow.refuse |= {
        "POST runs": (403, "not allowed"),
        "DELETE pipelines/pipeline-1": (500, "not today"),
    }
    result = CliRunner().invoke(app, ["acceptance", "--host", kubeflow.host, "--image", IMAGE])
    assert result.exit_code == 1
    assert "deleting the pipeline: HTTP 500, not today" in " ".join(result.output.split())
    assert [one for one in kubeflow.versions if one.pipeline_id == "pipeline-0"] == [before]
    assert "clean" in store_jobs


def test_what_was_made_stays_if_asked_for(
    kubeflow: FakeKubeflow, cluster: Cluster, store_jobs: dict[str, str]
) -> None:
    kubeflow.refuse["POST runs"] = (403, "not allowed")
    words = ["acceptance", "--host", kubeflow.host, "--image", IMAGE, "--keep"]
    assert CliRunner().invoke(app, words).exit_code == 1
    assert list(store_jobs) == ["prepare"]
    assert len(kubeflow.versions) == 2


def test_lines_that_the_acceptance_looks_for_in_logs_are_those_that_training_writes() -> None:
    written = "".join(
        Path(str(module.__file__)).read_text("utf-8") for module in (processes, training)
    )
    for line in (FIRST_EPOCH.replace("1", "%d"), KEPT, RESUMED.removesuffix("step-")):
        assert line in written
