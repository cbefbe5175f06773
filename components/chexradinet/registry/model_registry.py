"""A published model as a version in the Kubeflow Model Registry, by its REST API (ADR 0025)."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import requests  # type: ignore[import-untyped]

URL_VARIABLE = "MODEL_REGISTRY_URL"
"""Environment variable with the registry's address, such as `http://model-registry:8080`."""

_API, _TIMEOUT_S = "api/model_registry/v1alpha3", 10.0
_log = logging.getLogger(__name__)


def register_model(
    name: str, digest: str, uri: str, metrics: Mapping[str, float], card: str
) -> bool | None:
    """Register a bundle, unless it is registered; return whether it is, None without a registry.

    Never fails a publication: what goes wrong is a warning.
    """
    address = os.environ.get(URL_VARIABLE, "").strip().rstrip("/")
    if not address:
        return None
    shown: dict[str, Any] = {
        key: {"metadataType": "MetadataDoubleValue", "double_value": value}
        for key, value in metrics.items()
    }
    shown["model_card"] = {"metadataType": "MetadataStringValue", "string_value": card}
    api = f"{address}/{_API}"
    try:
        model = _ensured(f"{api}/registered_model", {"name": name})
        version = {"name": digest, "registeredModelId": model, "customProperties": shown}
        number = _ensured(f"{api}/model_version", version, model)
        artifact = {"name": digest, "uri": uri, "artifactType": "model-artifact"}
        place = f"{api}/model_versions/{number}/artifacts"
        _ensured(f"{api}/model_artifact", artifact, number, place)
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        _log.warning(
            "the model is published, but not registered (%s: %s); check %s and the registry's log, "
            "then run publish again", type(error).__name__, error, URL_VARIABLE,
        )  # fmt: skip
        return False
    return True


def _ensured(kind: str, body: Mapping[str, Any], parent: str = "", place: str = "") -> str:
    """Return the id of what has this name below its parent; it is created if it is not there."""
    wanted = {"name": body["name"], **({"parentResourceId": parent} if parent else {})}
    answer = requests.get(kind, params=wanted, timeout=_TIMEOUT_S)
    if answer.status_code == requests.codes.not_found:
        answer = requests.post(place or f"{kind}s", json=body, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    return str(answer.json()["id"])
