"""Published models: which one is the champion, and fetching one, verified. Without torch."""

import json
from pathlib import Path
from typing import Any

from chexradinet.errors import ArtifactError, StoreNotFoundError
from chexradinet.model.bundle_info import verify_bundle
from chexradinet.store.opening import open_store
from chexradinet.store.transfer import download_directory

POINTER = "champion.json"
"""Document under the models' URI that names the champion; it changes by compare and swap."""
POINTER_SCHEMA = 1


def read_pointer(models_uri: str) -> tuple[dict[str, Any], str]:
    """Return the pointer document and its ETag; both empty where nothing was published yet.

    Raises:
        ArtifactError: the document is of another schema.
    """
    store, prefix = open_store(models_uri)
    try:
        tag = store.stat(prefix + POINTER).etag
        document: dict[str, Any] = json.loads(store.get(prefix + POINTER))
    except StoreNotFoundError:
        return {}, ""
    if (document.get("kind"), document.get("schema")) != ("champion", POINTER_SCHEMA):
        raise ArtifactError(
            f"{models_uri}/{POINTER} is {document.get('kind')!r} of schema "
            f"{document.get('schema')!r}; this release reads 'champion' of schema {POINTER_SCHEMA}"
        )
    return document, tag


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
    return fetch_bundle(models_uri, str(pointer["digest"]), target)


def fetch_bundle(models_uri: str, digest: str, target: Path) -> str:
    """Download a published bundle, verified; return its digest.

    Raises:
        StoreNotFoundError: no bundle of this digest is published.
        ArtifactError: it was changed.
    """
    download_directory(f"{models_uri}/{digest}", target)
    found = verify_bundle(target)
    if found != digest:
        raise ArtifactError(
            f"the bundle under {digest[:12]} has digest {found[:12]}; restore it from a backup, or "
            "roll back to another champion (docs/operations.md)"
        )
    return found
