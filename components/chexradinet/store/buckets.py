"""Set up the object store of an installation: `python -m chexradinet.store.buckets FOLDER`.

The folder holds `buckets.json` and a `policy-<name>.json` for each policy, as the bucket Job mounts
them. A policy's user is made when `<NAME>_ACCESS_KEY_ID` and `<NAME>_SECRET_ACCESS_KEY` are set.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chexradinet.artifacts import read_document
from chexradinet.errors import ChexRadiNetError, ConfigError
from chexradinet.store.administration import BucketConfig, User, apply_policies, create_buckets
from chexradinet.store.environment import access_from_environment

BUCKETS_VERSION = 1
"""Schema of `buckets.json`."""

_LOG = logging.getLogger(__name__)


def read_buckets(path: Path) -> tuple[BucketConfig, ...]:
    """Read the buckets to make.

    Raises:
        ArtifactError: the document is missing, no JSON, or of another schema.
        ConfigError: an entry has an unknown or missing setting, or none is there.
    """
    entries = read_document(path, "buckets", BUCKETS_VERSION).get("buckets", [])
    try:
        buckets = tuple(BucketConfig(**entry) for entry in entries)
    except TypeError as error:
        raise ConfigError(
            f"an entry of {path} cannot be read: {error}; needed is a name"
        ) from error
    if not buckets:
        raise ConfigError(f"{path} names no bucket; add one under 'buckets'")
    return buckets


def read_policies(folder: Path) -> dict[str, dict[str, Any]]:
    """Read each `policy-<name>.json` of a folder.

    Raises:
        ConfigError: a document is no JSON.
    """
    policies = {}
    for path in sorted(folder.glob("policy-*.json")):
        try:
            policies[path.stem.removeprefix("policy-")] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}); mend the policy") from error
    return policies


def users_of(policies: Mapping[str, object], environ: Mapping[str, str]) -> tuple[User, ...]:
    """Return the users whose keys the environment holds, one for a policy at most.

    Raises:
        ConfigError: of a pair of variables only one is set.
    """
    users = []
    for policy in policies:
        prefix = policy.upper().replace("-", "_")
        names = (f"{prefix}_ACCESS_KEY_ID", f"{prefix}_SECRET_ACCESS_KEY")
        access_key, secret_key = (environ.get(name, "").strip() for name in names)
        if bool(access_key) != bool(secret_key):
            raise ConfigError(f"of {' and '.join(names)} only one is set; set both or none")
        if access_key:
            users.append(User(policy=policy, access_key=access_key, secret_key=secret_key))
    return tuple(users)


def set_up(folder: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Make buckets, policies and users; return whether policies were applied (MinIO only).

    Raises:
        ConfigError: a document or variable cannot be used; nothing was made.
        StoreError: the store refuses or cannot be reached.
    """
    buckets, policies = read_buckets(folder / "buckets.json"), read_policies(folder)
    users = users_of(policies, environ)
    access = access_from_environment(environ)
    create_buckets(buckets, access)
    return apply_policies(policies, users, access)


def main(arguments: list[str]) -> int:
    """Set up the store from a folder; return 0, or 1 with a message."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if len(arguments) != 1:
        _LOG.error("usage: python -m chexradinet.store.buckets FOLDER")
        return 2
    try:
        set_up(Path(arguments[0]))
    except ChexRadiNetError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
