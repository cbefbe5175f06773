"""Options that tell others of runs and models: the Model Registry, and Kubeflow's MLflow plugin."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate

from tests.manifests.conftest import MANIFESTS, rendered
from tests.manifests.objects import Object
from tests.manifests.test_network import INGEST_POD, reaches
from tests.manifests.test_overlays import KUBERNETES

API_SERVER: Object = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "ml-pipeline", "namespace": "kubeflow"},
    "spec": {
        "selector": {"matchLabels": {"app": "ml-pipeline"}},
        "template": {
            "metadata": {"labels": {"app": "ml-pipeline"}},
            "spec": {
                "containers": [{"name": "ml-pipeline-api-server", "image": "api-server:2.17.0"}]
            },
        },
    },
}


def with_option(folder: Path, resource: str, option: str, **more: Any) -> list[Object]:  # noqa: ANN401
    manifests = os.path.relpath(MANIFESTS, folder)
    kustomization = {"resources": [resource], "components": [f"{manifests}/options/{option}"]}
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization | more))
    return rendered(folder)


def test_only_publish_reaches_the_model_registry_whose_address_it_gets(
    tmp_path: Path, tool: Callable[[str, str], str]
) -> None:
    tool("kubectl", "its `kustomize` renders the option")
    overlay = f"{os.path.relpath(MANIFESTS, tmp_path)}/overlays/production/run"
    objects = with_option(tmp_path, overlay, "model-registry", namespace="chexradinet")
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    address = maps["chexradinet-run"]["MODEL_REGISTRY_URL"]
    assert address == "http://model-registry-service.kubeflow:8080"
    peer = {"namespace": "kubeflow", "labels": {"component": "model-registry-server"}}
    for stage, may in (("publish", True), ("train", False), ("score", False)):
        pod = INGEST_POD | {"app.kubernetes.io/component": stage}
        assert reaches(objects, pod, peer, 8080) is may


def test_the_api_server_reads_the_plugins_configuration(
    tmp_path: Path, tool: Callable[[str, str], str]
) -> None:
    tool("kubectl", "its `kustomize` renders the option")
    (tmp_path / "server.yaml").write_text(json.dumps(API_SERVER))
    objects = {o["kind"]: o for o in with_option(tmp_path, "server.yaml", "mlflow")}
    for thing in objects.values():
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["mountPath"] == "/config/config.json"
    plugin = json.loads(objects["ConfigMap"]["data"]["config.json"])["plugins"]["mlflow"]
    assert plugin["endpoint"].startswith("https://")
    assert plugin["tls"]["insecureSkipVerify"] is False
