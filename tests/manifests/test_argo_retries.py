"""The option that makes Argo try failed steps again, on the configuration that Kubeflow ships."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.manifests.conftest import MANIFESTS, rendered

STOCK = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "workflow-controller-configmap", "namespace": "kubeflow"},
    "data": {
        "executor": "imagePullPolicy: IfNotPresent\n",
        "workflowDefaults": (
            "spec:\n  templateDefaults:\n    retryStrategy:\n"
            "      limit: '2'\n      retryPolicy: OnError\n"
        ),
    },
}


def test_failed_steps_are_tried_again_and_dags_are_not_repeated(
    tmp_path: Path, tool: Callable[[str, str], str]
) -> None:
    tool("kubectl", "its `kustomize` renders the option")
    (tmp_path / "argo.yaml").write_text(yaml.safe_dump(STOCK), encoding="utf-8")
    option = os.path.relpath(MANIFESTS / "options" / "argo-retries", tmp_path)
    kustomization = {"resources": ["argo.yaml"], "components": [option]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
    (found,) = rendered(tmp_path)
    assert found["metadata"] == STOCK["metadata"]
    assert found["data"]["executor"] == STOCK["data"]["executor"]  # type: ignore[index]
    defaults = yaml.safe_load(found["data"]["workflowDefaults"])["spec"]
    assert defaults["templateDefaults"] == {
        "retryStrategy": {"limit": "0", "retryPolicy": "Always"}
    }
    # As Kubeflow sets it: the option changes nothing else.
    assert set(defaults["ttlStrategy"].values()) == {3600}
