"""From a URI to the store that holds it."""

import os
from functools import lru_cache
from pathlib import Path

from chexradinet.config import StoreConfig
from chexradinet.store.environment import S3Access, access_from_environment
from chexradinet.store.local import LocalStore
from chexradinet.store.protocol import ObjectStore
from chexradinet.store.uri import Location, parse_uri

DEFAULT = StoreConfig()
"""What the functions that take a URI use."""


def open_store(uri: str, config: StoreConfig = DEFAULT) -> tuple[ObjectStore, str]:
    """Return the store that holds a folder, and what the folder's keys start with.

    Args:
        uri: A folder: a path, `file://`, `s3://bucket/folder` or `minio://bucket/folder`.
        config: How the store is talked to.

    Returns:
        The store, and a prefix that is empty or ends in `/`: `prefix + name` is the key of a name.

    Raises:
        ConfigError: the URI cannot be read.
        StoreAccessError: a variable that the store needs is not set.
    """
    location = parse_uri(uri)
    if location.bucket is None:
        return LocalStore(Path(location.key)), ""
    folder = location.key.strip("/")
    return _bucket_store(location.bucket, config), f"{folder}/" if folder else ""


def open_object(uri: str, config: StoreConfig = DEFAULT) -> tuple[ObjectStore, str]:
    """Return the store that holds an object, and the object's key.

    Raises:
        ConfigError: the URI cannot be read.
        StoreAccessError: a variable that the store needs is not set.
    """
    location = parse_uri(uri)
    if location.bucket is None:
        path = Path(location.key)
        return LocalStore(path.parent), path.name
    return _bucket_store(location.bucket, config), location.key


def path_of(location: Location) -> Path | None:
    """Return the path of a location in the file system, None for one in a bucket."""
    return Path(location.key) if location.bucket is None else None


def _bucket_store(bucket: str, config: StoreConfig) -> ObjectStore:
    return _opened(bucket, access_from_environment(), config, os.getpid())


@lru_cache(maxsize=8)
def _opened(bucket: str, access: S3Access, config: StoreConfig, process: int) -> ObjectStore:
    """Keep connections open between calls; a forked process must not share them."""
    # Here, so that what reads local files only runs without the client.
    from chexradinet.store.s3 import S3Store

    return S3Store(bucket, access, config)
