"""What the project asks of object storage, whatever holds the objects.

A key is names joined by slashes, as in `scores/date=2026-01-31/part.parquet`. Whoever lists, gets
keys in the order of their UTF-8 bytes. Objects appear whole or not at all, and what is written with
a checksum is read with one.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from chexradinet.artifacts import writing_file
from chexradinet.errors import StoreBucketError, StoreNotFoundError
from chexradinet.store.checksums import ChunkStream
from chexradinet.store.file_errors import file_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store tells of an object without reading it."""

    key: str
    """Name within the store."""
    uri: str
    """Name that `read_bytes` and its like take."""
    size_bytes: int
    """Length."""
    etag: str
    """Changes whenever the content does; opaque."""
    modified: datetime
    """When it was written, by the store's clock, in UTC."""
    sha256: str | None = None
    """Checksum recorded by its writer, in hex; None where unknown, and in listings of S3."""


class ObjectStore(Protocol):
    """A bucket or a directory. Safe to use from several threads; not to be shared over a fork.

    Every method raises `StoreAccessError` where credentials are wrong, expired or not allowed to,
    `StoreUnavailableError` where the store cannot be reached also after retries, `StoreFullError`
    where there is no space, `ConfigError` where a key cannot be one, and `StoreError` for the rest.
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

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with a prefix, in key order.

        Args:
            prefix: Any start of a key; ends in `/` where a folder is meant.

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
        """Remove an object; it is no error where there is none."""
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

    def open_stream(self, key: str) -> BinaryIO:
        """Return an object as a binary file to read once, from start to end; the caller closes it.

        Bytes are handed out before the whole is verified: `StoreIntegrityError` comes at the end.
        """
        return cast(BinaryIO, io.BufferedReader(ChunkStream(self.chunks(key))))

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
