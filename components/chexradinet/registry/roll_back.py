"""Back to an earlier champion: `python -m chexradinet.registry.roll_back MODELS_URI DIGEST`.

Nothing is deleted and the history is not rewritten: the pointer moves by compare and swap to a
bundle that was published before and whose bytes are still those of its digest. The next night
scores with it.
"""

import json
import logging
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from chexradinet.errors import ChexRadiNetError, ConfigError
from chexradinet.registry.champion import POINTER, fetch_bundle, read_pointer
from chexradinet.store.opening import open_store

MIN_DIGEST_LENGTH = 8
"""Fewest leading characters of a digest that name a bundle."""

_LOG = logging.getLogger(__name__)


def roll_back(models_uri: str, digest: str) -> str:
    """Make an earlier champion the champion again; return its whole digest.

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
    history = pointer.get("history", [])
    chosen = _chosen(digest, [str(entry["digest"]) for entry in history], models_uri)
    if chosen == pointer["digest"]:
        _LOG.info("%s is the champion already", chosen[:12])
        return chosen
    with tempfile.TemporaryDirectory() as folder:
        fetch_bundle(models_uri, chosen, Path(folder) / "bundle")
    entry = {
        "digest": chosen,
        "reason": f"Rolled back from {pointer['digest'][:12]}.",
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    document = pointer | {"digest": chosen, "history": [*history, entry]}
    store, prefix = open_store(models_uri)
    store.put(prefix + POINTER, (json.dumps(document, indent=1) + "\n").encode(), if_match=tag)
    _LOG.info("champion is %s again, was %s", chosen[:12], pointer["digest"][:12])
    return chosen


def _chosen(digest: str, published: list[str], models_uri: str) -> str:
    known = dict.fromkeys(published)
    found = [name for name in known if name.startswith(digest.lower())]
    if len(digest) < MIN_DIGEST_LENGTH or len(found) != 1:
        names = ", ".join(name[:12] for name in known) or "none"
        raise ConfigError(
            f"digest {digest!r} names {len(found)} bundles published under {models_uri}; give at "
            f"least {MIN_DIGEST_LENGTH} characters of one of: {names}"
        )
    return found[0]


def main(arguments: list[str]) -> int:
    """Roll back; return 0, or 1 with a message."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if len(arguments) != 2:
        _LOG.error("usage: python -m chexradinet.registry.roll_back MODELS_URI DIGEST")
        return 2
    try:
        roll_back(*arguments)
    except ChexRadiNetError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
