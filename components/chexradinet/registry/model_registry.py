"""A published model as a version in the Kubeflow Model Registry, by its REST API (ADR 0025)."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import requests  # type: ignore[import-untyped]

URL_VARIABLE = "MODEL_REGISTRY_URL"
"""Environment variable with the registry's address, such as `http://model-registry:8080`."""
TIMEOUT_S = 10.0
"""Longest wait for an answer."""

_API = "api/model_registry/v1alpha3"
_log = logging.getLogger(__name__)


def register_model(
    name: str, digest: str, uri: str, metrics: Mapping[str, float], card: str
) -> bool | None:
    """Register a published model, unless it is registered; never fails a publication.

    Args:
        name: Name of the registered model.
        digest: Digest of the bundle, which names the version.
        uri: Where the bundle lies.
        metrics: Finite numbers to show beside the version.
        card: Model card, in Markdown.

    Returns:
        Whether the registry has the model now; None if no registry is set.
    """
    address = os.environ.get(URL_VARIABLE, "").strip().rstrip("/")
    if not address:
        return None
    numbers = {
        key: {"metadataType": "MetadataDoubleValue", "double_value": value}
        for key, value in metrics.items()
    }
    text = {"metadataType": "MetadataStringValue", "string_value": card}
    try:
        with requests.Session() as session:
            session.trust_env = False
            model = _ensured(session, f"{address}/{_API}", "registered_model", {"name": name})
            of_model = {"name": digest, "registeredModelId": model}
            shown = {"customProperties": {**numbers, "model_card": text}}
            version = _ensured(
                session, f"{address}/{_API}", "model_version", of_model | shown, model
            )
            artifact = {"name": digest, "uri": uri, "artifactType": "model-artifact"}
            where = f"model_versions/{version}/artifacts"
            _ensured(session, f"{address}/{_API}", "model_artifact", artifact, version, where)
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        _log.warning(
            "the model is published, but not registered (%s: %s); check %s and the registry's log, "
            "then run publish again",
            type(error).__name__, error, URL_VARIABLE,
        )  # fmt: skip
        return False
    return True


def _ensured(
    session: requests.Session,
    api: str,
    kind: str,
    body: Mapping[str, Any],
    parent: str = "",
    where: str = "",
) -> str:
    """Return the id of what has this name below its parent; it is created if it is not there."""
    wanted = {"name": body["name"], **({"parentResourceId": parent} if parent else {})}
    answer = session.get(f"{api}/{kind}", params=wanted, timeout=TIMEOUT_S)
    if answer.status_code == requests.codes.not_found:
        answer = session.post(f"{api}/{where or kind + 's'}", json=body, timeout=TIMEOUT_S)
    answer.raise_for_status()
    return str(answer.json()["id"])
