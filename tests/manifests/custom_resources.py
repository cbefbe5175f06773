"""Definitions of the custom resources that the overlays use, as their projects publish them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
_SECRETS = "github.com/external-secrets/external-secrets@v1.3.2"
_TRAINER = "github.com/kubeflow/trainer/v2@v2.0.0"


class Published(NamedTuple):
    """Where the definition of a kind is: a Go module, and a file in it."""

    module: str
    path: str


PUBLISHED = {
    "ServiceMonitor": Published(
        _OPERATOR, "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"
    ),
    "PrometheusRule": Published(
        _OPERATOR, "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"
    ),
    "ExternalSecret": Published(
        _SECRETS, "config/crds/bases/external-secrets.io_externalsecrets.yaml"
    ),
    "TrainingRuntime": Published(
        _TRAINER, "manifests/base/crds/trainer.kubeflow.org_trainingruntimes.yaml"
    ),
    "TrainJob": Published(_TRAINER, "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml"),
}


def definitions(go: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the CustomResourceDefinition of each kind.

    Args:
        go: The program, which downloads the modules or has them in its cache.
        folder: Outside any Go module.
    """
    found: dict[str, Path] = {}
    for module in sorted({published.module for published in PUBLISHED.values()}):
        command = [go, "mod", "download", "-json", module]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0, f"{module}: {done.stdout}{done.stderr}"
        found[module] = Path(json.loads(done.stdout)["Dir"])
    return {
        kind: yaml.safe_load((found[published.module] / published.path).read_text("utf-8"))
        for kind, published in PUBLISHED.items()
    }


def schema_of(definition: dict[str, Any], api_version: str) -> dict[str, Any]:
    """Return a JSON schema for objects of an API version, which refuses unknown fields."""
    group, _, version = api_version.partition("/")
    assert group == definition["spec"]["group"]
    (served,) = [one for one in definition["spec"]["versions"] if one["name"] == version]
    assert served["served"], f"{api_version} is served no more"
    schema: dict[str, Any] = json.loads(json.dumps(served["schema"]["openAPIV3Schema"]))
    schema["properties"]["metadata"].pop("type", None)
    for part in _schemas(schema):
        if "properties" in part and not part.get("x-kubernetes-preserve-unknown-fields"):
            part.setdefault("additionalProperties", False)
        if part.get("nullable") and "type" in part:
            part["type"] = [part["type"], "null"]
        # OpenAPI's patterns are Go's; its formats say nothing that the API server checks.
        part.pop("format", None)
    return schema


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a schema and all below it that describe values."""
    yield schema
    below = list(schema.get("properties", {}).values())
    below += [schema[name] for name in ("items", "additionalProperties") if name in schema]
    for part in below:
        if isinstance(part, dict):
            yield from _schemas(part)
