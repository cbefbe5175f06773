"""Published models: which one is the champion, fetching one, promotion and roll back. No torch.

`champion.json` under the models' URI names the champion and all before it. It changes by compare
and swap, nothing is deleted and the history is not rewritten. Names in it are checked before they
become paths: whoever can write it must not reach beyond the models' folder. If a Kubeflow Model
Registry is there, a published model is a version in it too (ADR 0025).
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests  # type: ignore[import-untyped]

from chexradinet.errors import ArtifactError, ConfigError, StoreNotFoundError
from chexradinet.model import verify_bundle
from chexradinet.store import download_directory, open_store

POINTER = "champion.json"
"""Document under the models' URI that names the champion."""
POINTER_SCHEMA = 1
MIN_DIGEST_LENGTH = 8
"""Fewest leading characters of a digest that name a bundle."""
URL_VARIABLE = "MODEL_REGISTRY_URL"
"""Environment variable with the registry's address, such as `http://model-registry:8080`."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOG = logging.getLogger(__name__)
_API, _TIMEOUT_S = "api/model_registry/v1alpha3", 10.0


def read_pointer(models_uri: str) -> tuple[dict[str, Any], str]:
    """Return the pointer document and its ETag; both empty if nothing was published yet.

    Raises:
        ArtifactError: the document is malformed or of another schema.
    """
    store, prefix = open_store(models_uri)
    try:
        tag = store.stat(prefix + POINTER).etag
        data = store.get(prefix + POINTER)
    except StoreNotFoundError:
        return {}, ""
    try:
        document = json.loads(data)
        fault = _fault(document)
    except (ValueError, RecursionError):
        fault = "it is not JSON"
    if fault:
        raise ArtifactError(
            f"{models_uri}/{POINTER} names no champion: {fault}; bring back its last version "
            "(docs/operations.md, 'Restore from a lost bucket')"
        )
    return document, tag


def _fault(document: object) -> str:
    """Return what is wrong with a pointer document; empty for a sound one."""
    if not isinstance(document, dict):
        return "it is not a JSON object"
    if (document.get("kind"), document.get("schema")) != ("champion", POINTER_SCHEMA):
        return (
            f"it is {str(document.get('kind'))[:40]!r} of schema "
            f"{str(document.get('schema'))[:40]!r}; this release reads 'champion' of schema "
            f"{POINTER_SCHEMA}"
        )
    history = document.get("history")
    if not isinstance(history, list):
        return "its 'history' is not a list"
    entries: dict[str, Any] = {"its": document}
    entries |= {f"history entry {place}'s": one for place, one in enumerate(history, start=1)}
    for whose, entry in entries.items():
        digest = entry.get("digest") if isinstance(entry, dict) else None
        if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            return f"{whose} 'digest' is not a SHA-256 of 64 hexadecimal digits"
    return ""


def fetch_champion(models_uri: str, target: Path) -> str:
    """Download the champion's bundle, verified; return its digest.

    Raises:
        StoreNotFoundError: nothing was published yet.
        ArtifactError: the bundle under the champion's name is another or was changed.
    """
    pointer, _ = read_pointer(models_uri)
    if not pointer:
        raise StoreNotFoundError(
            f"{models_uri} has no {POINTER}: no model was published there yet; run the training "
            "pipeline first, or check models_uri"
        )
    return fetch_bundle(models_uri, pointer["digest"], target)


def fetch_bundle(models_uri: str, digest: str, target: Path) -> str:
    """Download a published bundle, verified; return its digest.

    Raises:
        StoreNotFoundError: no bundle of this digest is published.
        ArtifactError: it was changed, or `digest` is not one.
    """
    if not _DIGEST.fullmatch(digest):
        raise ArtifactError(
            f"{digest[:80]!r} is not the digest of a bundle; give the 64 hexadecimal digits under "
            f"which it lies in {models_uri}"
        )
    download_directory(f"{models_uri}/{digest}", target)
    found = verify_bundle(target)
    if found != digest:
        raise ArtifactError(
            f"the bundle under {digest[:12]} has digest {found[:12]}; restore it from a backup, or "
            "roll back to another champion (docs/operations.md)"
        )
    return found


def move_pointer(
    models_uri: str, pointer: Mapping[str, Any], tag: str, digest: str, reason: str
) -> None:
    """Make a published bundle the champion.

    Args:
        models_uri: Folder of published models.
        pointer: Present pointer document, empty for none.
        tag: Its ETag, empty for none.
        digest: Bundle to point to.
        reason: Sentence for the history.

    Raises:
        StoreConflictError: another publication moved the pointer since it was read.
    """
    entry = {
        "digest": digest,
        "reason": reason,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    document = {
        "schema": POINTER_SCHEMA,
        "kind": "champion",
        "digest": digest,
        "history": [*pointer.get("history", []), entry],
    }
    store, prefix = open_store(models_uri)
    data = (json.dumps(document, indent=1) + "\n").encode()
    if tag:
        store.put(prefix + POINTER, data, if_match=tag)
    else:
        store.create(prefix + POINTER, data)


def roll_back(models_uri: str, digest: str) -> str:
    """Make an earlier champion the champion again; return its whole digest.

    The next night scores with it, if its bytes are still those of its digest.

    Args:
        models_uri: Folder of published models: a path or `s3://bucket/prefix`.
        digest: Digest of the bundle, or at least its first 8 characters.

    Raises:
        ConfigError: no published bundle, or more than one, has this digest.
        ArtifactError: the bundle's bytes have changed, or it is incomplete.
        StoreConflictError: another publication moved the pointer meanwhile.
        StoreError: the models' folder cannot be read or written.
    """
    pointer, tag = read_pointer(models_uri)
    known: dict[str, None] = dict.fromkeys(entry["digest"] for entry in pointer.get("history", []))
    found = [name for name in known if name.startswith(digest.lower())]
    if len(digest) < MIN_DIGEST_LENGTH or len(found) != 1:
        names = ", ".join(name[:12] for name in known) or "none"
        raise ConfigError(
            f"digest {digest[:80]!r} names {len(found)} bundles published under {models_uri}; give "
            f"at least {MIN_DIGEST_LENGTH} characters of one of: {names}"
        )
    (chosen,) = found
    before = pointer["digest"][:12]
    if chosen == pointer["digest"]:
        _LOG.info("%s is the champion already", before)
        return chosen
    with tempfile.TemporaryDirectory() as folder:
        fetch_bundle(models_uri, chosen, Path(folder) / "bundle")
    move_pointer(models_uri, pointer, tag, chosen, f"Rolled back from {before}.")
    _LOG.info("champion is %s again, was %s", chosen[:12], before)
    return chosen


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
        _LOG.warning(
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
