"""What the project asks of object storage, whatever holds the objects.

A key is names joined by slashes, as in `scores/date=2026-01-31/part.parquet`. Listings are in the
order of the keys' UTF-8 bytes. Objects appear whole or not at all, and what is written with a
checksum is read with one.
"""

import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from chexradinet.artifacts import writing_file
from chexradinet.errors import (
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreNotFoundError,
)
from chexradinet.store.checksums import file_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store tells of an object without reading it."""

    key: str
    """Name within the store."""
    uri: str
    """Name that `open_object` takes."""
    size_bytes: int
    """Length."""
    etag: str
    """Changes whenever the content does; opaque."""
    modified: datetime
    """When it was written, by the store's clock, in UTC."""
    sha256: str | None = None
    """Checksum recorded by its writer, in hex; None if unknown, and in listings of S3."""


class ObjectStore(Protocol):
    """A bucket or a directory. Safe to use from several threads; not to be shared over a fork.

    Every method raises `StoreAccessError` if credentials are wrong, expired or not allowed to,
    `StoreUnavailableError` if the store cannot be reached also after retries, `StoreFullError` if
    there is no space, `ConfigError` if a key cannot be one, and `StoreError` for the rest.
    """

    def uri_of(self, key: str) -> str:
        """Return the URI of a key."""
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Return what is known of an object.

        Raises:
            StoreNotFoundError: there is no such object (`StoreBucketError`: no such bucket).
        """
        ...

    def list(
        self, prefix: str = "", left_out: builtins.list[str] | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with a prefix, in key order.

        Args:
            prefix: Any start of a key; ends in `/` if a folder is meant.
            left_out: Collects what cannot be read, such as a folder without permission; by default
                a folder that cannot be read is an error.

        Raises:
            StoreBucketError: there is no such bucket. A missing folder is just empty.
        """
        ...

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes, in pieces of at most 1 MiB.

        Raises:
            StoreNotFoundError: there is no such object.
            StoreConflictError: it was replaced while it was being read.
            StoreIntegrityError: after the last piece: length or checksum are not as recorded.
        """
        ...

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write an object, replacing an older one; return its ETag.

        Args:
            key: Name within the store.
            data: The whole content.
            if_match: Write only if the object has this ETag now (compare and swap).

        Raises:
            StoreConflictError: the object has another ETag or is gone.
        """
        ...

    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not exist yet; return its ETag. Of several writers one wins.

        Raises:
            StoreConflictError: the object exists.
        """
        ...

    def put_file(self, key: str, path: Path) -> str:
        """Write a file of any size with bounded memory, replacing an older one; return its ETag."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is not an error."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's bytes, verified.

        Raises:
            StoreNotFoundError: there is no such object.
            StoreIntegrityError: length or checksum are not as recorded.
        """
        return b"".join(self.chunks(key))

    def get_file(self, key: str, target: Path) -> None:
        """Copy an object into a file with bounded memory; the file appears whole and verified.

        Raises:
            StoreNotFoundError: there is no such object.
            StoreIntegrityError: length or checksum are not as recorded.
        """
        with (
            file_errors("write", target),
            writing_file(target) as temporary,
            temporary.open("wb") as stream,
        ):
            for chunk in self.chunks(key):
                stream.write(chunk)

    def exists(self, key: str) -> bool:
        """Tell whether there is such an object.

        Raises:
            StoreBucketError: there is no such bucket.
        """
        try:
            self.stat(key)
        except StoreBucketError:
            raise
        except StoreNotFoundError:
            return False
        return True


def require_conditional_create(store: ObjectStore, prefix: str) -> None:
    """Refuse a store that would let two writers create the same object.

    Exactly-once scoring is built on it. Older servers ignore the header `If-None-Match` and
    overwrite. An empty probe is created twice and stays: the right to delete is not needed.

    Args:
        store: Store to try.
        prefix: Start of the probe's key; empty or ending in `/`.

    Raises:
        StoreError: the second creation was let through.
    """
    for _ in range(2):
        try:
            store.create(f"{prefix}conditional-create", b"")
        except StoreConflictError:
            return
    raise StoreError(
        f"the store of {store.uri_of(prefix)} overwrites what must only be created; it needs "
        "conditional writes (If-None-Match on PutObject): use a newer release of it"
    )
