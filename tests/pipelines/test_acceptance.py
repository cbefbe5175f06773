"""The acceptance's own conduct: what it runs in the store, and how it ends when a step fails."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from chexradinet.errors import ChexRadiNetError
from pipelines import remote
from pipelines.__main__ import app
from pipelines.store_job import run_store_job
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
    assert run_store_job("prepare", "print('done')") == "done\n"
    made = yaml.safe_load((tmp_path / "applied").read_text())
    template = made["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["command"] == ["python3", "-c", "print('done')"]
    for name in ("image", "env", "securityContext"):
        assert container[name] == BUCKETS["spec"]["template"]["spec"]["containers"][0][name]  # type: ignore[index]
    assert template["metadata"]["labels"] == {"app.kubernetes.io/name": "buckets"}
    assert made["spec"]["backoffLimit"] == 0
    assert "delete job prepare --namespace chexradinet-store" in (tmp_path / "calls").read_text()


def test_a_script_that_fails_ends_with_its_log(cluster: Cluster, tmp_path: Path) -> None:
    cluster.has("job", "prepare", {"status": {"failed": 1}})
    (tmp_path / "log").write_text("AccessDenied\n")
    with pytest.raises(ChexRadiNetError, match="job prepare failed: AccessDenied"):
        run_store_job("prepare", "")


def test_an_installation_that_lacks_something_is_not_touched(
    kubeflow: FakeKubeflow, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.lacks("secret", "chexradinet-deidentification")
    result = CliRunner().invoke(app, ["acceptance", "--host", kubeflow.host, "--image", IMAGE])
    assert result.exit_code == 1
    assert "secret chexradinet-deidentification" in " ".join(result.output.split())
    assert kubeflow.writes == []
    assert "apply" not in (tmp_path / "calls").read_text()


def test_a_step_that_fails_ends_the_acceptance_and_what_was_made_is_removed(
    kubeflow: FakeKubeflow, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def job(name: str, script: str) -> str:
        ran.append(name.rpartition("-")[2])
        return ""

    monkeypatch.setattr("pipelines.acceptance.run_store_job", job)
    kubeflow.refuse["POST runs"] = (403, "not allowed")
    result = CliRunner().invoke(app, ["acceptance", "--host", kubeflow.host, "--image", IMAGE])
    assert result.exit_code == 1
    assert ran == ["prepare", "clean"]
    lines = [line.split() for line in result.output.splitlines()]
    states = {" ".join(words[:2]): "FAILED" in words for words in lines if words}
    assert states["upload phantoms"] is False
    assert states["training: two"] is True
    assert not any(line[:1] == ["night"] for line in lines)
    assert json.loads((tmp_path / "nodes--o").read_text())["items"]
