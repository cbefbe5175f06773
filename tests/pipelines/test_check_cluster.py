"""What a cluster has and lacks is told from its own answers; a shim stands in for kubectl."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from pipelines import remote
from pipelines.__main__ import app
from pipelines.check_cluster import quantity

if TYPE_CHECKING:
    from tests.pipelines.conftest import FakeKubeflow
else:
    FakeKubeflow = Any

IMAGE = "chexradinet-worker-python:1"
STOCK = "spec: {templateDefaults: {retryStrategy: {limit: '2', retryPolicy: OnError}}}"
NODE = {
    "metadata": {"name": "one"},
    "status": {
        "allocatable": {"cpu": "4", "memory": "12Gi"},
        "images": [{"names": [f"docker.io/library/{IMAGE}"]}, {"sizeBytes": 1}],
    },
}
PRESENT = {
    "serviceaccount": ["chexradinet-runner"],
    "secret": [
        "chexradinet-deidentification",
        *(
            f"chexradinet-object-store-{identity}"
            for identity in ("artifacts", "ingest", "night", "publish", "training")
        ),
    ],
    "configmap": ["chexradinet-run", "kfp-launcher"],
}


def _pod(cpu: str, memory: str, phase: str = "Running") -> dict[str, Any]:
    container = {"resources": {"requests": {"cpu": cpu, "memory": memory}}}
    spec = {"nodeName": "one", "containers": [container, {}]}
    return {"metadata": {}, "spec": spec, "status": {"phase": phase}}


class Cluster:
    """Answers for kubectl, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shim = folder / "bin" / "kubectl"
        shim.parent.mkdir()
        missing = '{ echo "Error from server (NotFound): $2 $3 not found" >&2; exit 1; }'
        shim.write_text(f'#!/bin/sh\nf={folder}/$2-$3\n[ -f "$f" ] && /bin/cat "$f" || {missing}\n')
        shim.chmod(0o755)
        for kind, names in PRESENT.items():
            for name in names:
                self.has(kind, name, {})
        self.retries(STOCK)
        self.has("job", "chexradinet-buckets", {"status": {"succeeded": 1}})
        self.has("nodes", "-o", {"items": [NODE]})
        # A run that continues now leaves room when it ends.
        run = _pod("3", "9Gi") | {"metadata": {"labels": {"pipeline/runid": "1"}}}
        self.has("pods", "-A", {"items": [_pod("500m", "2Gi"), _pod("9", "9Gi", "Failed"), run]})

    def has(self, kind: str, name: str, answer: dict[str, Any]) -> None:
        """Let kubectl know an object, or a list."""
        (self.folder / f"{kind}-{name}").write_text(json.dumps(answer))

    def lacks(self, kind: str, name: str) -> None:
        """Let kubectl not know it."""
        (self.folder / f"{kind}-{name}").unlink()

    def retries(self, defaults: str) -> None:
        """Set what Argo adds to each Workflow."""
        self.has(
            "configmap", "workflow-controller-configmap", {"data": {"workflowDefaults": defaults}}
        )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CHEXRADINET_IMAGE", raising=False)
    monkeypatch.setattr(remote, "console", Console(width=1000))
    return Cluster(tmp_path)


def _check(kubeflow: FakeKubeflow, *words: str) -> Result:
    return CliRunner().invoke(app, ["check-cluster", "--host", kubeflow.host, *words])


def _line(result: Result, subject: str) -> str:
    (line,) = [line for line in result.output.splitlines() if line.startswith(subject)]
    return " ".join(line.split())


def test_the_version_is_read_through_the_web_interface_too(
    kubeflow: FakeKubeflow, cluster: Cluster
) -> None:
    kubeflow.health = {"apiServerReady": True, "apiServerTagName": "2.17.0"}
    assert _line(_check(kubeflow), "Kubeflow Pipelines") == "Kubeflow Pipelines ok 2.17.0"


def test_a_stock_installation_passes_and_is_told_which_retries_are_in_force(
    kubeflow: FakeKubeflow, cluster: Cluster
) -> None:
    result = _check(kubeflow, "--image", IMAGE)
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.output
    assert _line(result, "Kubeflow Pipelines") == "Kubeflow Pipelines ok 2.17.0"
    assert "warning retryPolicy OnError, limit 2: a failed container ends" in " ".join(
        result.output.split()
    )
    assert _line(result, "nodes") == "nodes ok 1; the emptiest has 3.5 cores and 10 GiB free"
    assert _line(result, "worker image").startswith("worker image ok")
    assert kubeflow.writes == []


@pytest.mark.parametrize(
    ("strategy", "state"),
    [
        ("{limit: '0', retryPolicy: Always}", "ok"),
        ("{limit: '2', retryPolicy: Always}", "warning"),
        ("{}", "warning"),
    ],
)
def test_each_retry_policy_is_told_apart(
    kubeflow: FakeKubeflow, cluster: Cluster, strategy: str, state: str
) -> None:
    cluster.retries(f"spec: {{templateDefaults: {{retryStrategy: {strategy}}}}}")
    assert _line(_check(kubeflow), "Argo's retries").startswith(f"Argo's retries {state}")


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in PRESENT.items() for name in names]
)
def test_each_missing_object_is_named(
    kubeflow: FakeKubeflow, cluster: Cluster, kind: str, name: str
) -> None:
    cluster.lacks(kind, name)
    result = _check(kubeflow)
    assert result.exit_code == 1
    assert "FAILED" in _line(result, f"{kind} {name}")
    assert result.output.count("FAILED") == 1


def test_an_old_release_a_full_node_a_missing_image_and_unmade_buckets_fail(
    kubeflow: FakeKubeflow, cluster: Cluster
) -> None:
    kubeflow.health["tag_name"] = "2.4.1"
    cluster.has("job", "chexradinet-buckets", {"status": {"failed": 1}})
    cluster.has("pods", "-A", {"items": [_pod("3500m", "1Gi")]})
    result = _check(kubeflow, "--image", "other-python:1")
    assert result.exit_code == 1
    assert "2.4.1; it must be 2.17 or later" in result.output
    assert "a step needs 1 core and 6Gi on one node" in result.output
    assert "other-python:1 is on 0 of 1 nodes" in result.output
    assert "has not succeeded in chexradinet-store" in result.output


def test_what_cannot_be_asked_is_a_warning(kubeflow: FakeKubeflow, cluster: Cluster) -> None:
    cluster.lacks("configmap", "workflow-controller-configmap")
    cluster.lacks("nodes", "-o")
    cluster.lacks("job", "chexradinet-buckets")
    result = _check(kubeflow)
    assert result.exit_code == 0
    assert result.output.count("not known: kubectl says") == 3


@pytest.mark.parametrize(
    ("text", "number"),
    [("250m", 0.25), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("24479284Ki", 24479284 * 1024)],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: str, number: float) -> None:
    assert quantity(text) == number
