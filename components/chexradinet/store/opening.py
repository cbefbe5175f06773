"""From a URI to the store that holds it."""

import os
from functools import lru_cache

from chexradinet.config import StoreConfig
from chexradinet.store.local import LocalStore
from chexradinet.store.protocol import ObjectStore
from chexradinet.store.uri import S3Access, access_from_environment, parse_uri

DEFAULT = StoreConfig()
"""Settings of the functions that take a URI."""


def open_store(uri: str, config: StoreConfig = DEFAULT) -> tuple[ObjectStore, str]:
    """Return the store that holds a folder, and what the folder's keys start with.

    Args:
        uri: A folder: a path, `file://`, `s3://bucket/folder` or `minio://bucket/folder`.
        config: Timeouts and retries.

    Returns:
        The store, and a prefix that is empty or ends in `/`: `prefix + name` is the key of a name.

    Raises:
        ConfigError: the URI cannot be read.
        StoreAccessError: a variable that the store needs is not set.
    """
    location = parse_uri(uri)
    if location.path is not None:
        return LocalStore(location.path), ""
    folder = location.key.strip("/")
    return _bucket_store(str(location.bucket), config), f"{folder}/" if folder else ""


def open_object(uri: str, config: StoreConfig = DEFAULT) -> tuple[ObjectStore, str]:
    """Return the store that holds an object, and the object's key.

    Raises:
        ConfigError: the URI cannot be read.
        StoreAccessError: a variable that the store needs is not set.
    """
    location = parse_uri(uri)
    if location.path is not None:
        return LocalStore(location.path.parent), location.path.name
    return _bucket_store(str(location.bucket), config), location.key


def _bucket_store(bucket: str, config: StoreConfig) -> ObjectStore:
    return _opened(bucket, access_from_environment(), config, os.getpid())


@lru_cache(maxsize=8)
def _opened(bucket: str, access: S3Access, config: StoreConfig, process: int) -> ObjectStore:
    """Keep connections open between calls; a forked process must not share them."""
    # Here, so that what reads local files only runs without the client.
    from chexradinet.store.s3 import S3Store

    return S3Store(bucket, access, config)
