"""What the project asks of object storage, and what all stores share: checks, waits and errors.

A key is names joined by slashes, as in `scores/date=2026-01-31/part.parquet`. Listings are in the
order of the keys' UTF-8 bytes. Objects appear whole or not at all, and what is written with a
checksum is read with one. An attempt is repeated with exponential backoff, bounded by a total time;
waits are drawn from the upper half of their range, so that many workers that lost the store at once
do not all come back at once.
"""

import builtins
import errno
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from chexradinet.artifacts import writing_file
from chexradinet.errors import (
    StoreAccessError,
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreIntegrityError,
    StoreNotFoundError,
    StoreUnavailableError,
)

CHUNK_BYTES = 1 << 20
"""Most bytes read at once."""
_FULL = (StoreFullError, "free space there, or choose another place, and run again")
_DENIED = (StoreAccessError, "allow this user to {action} there")
_LOST = (StoreUnavailableError, "check the disk or the network mount and run again")
_NO_FILE = (StoreNotFoundError, "the path of a file in a directory is needed")
_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _DENIED),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN), _LOST
    ),
    errno.ENOENT: (StoreNotFoundError, "check the path"),
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), _NO_FILE),
}
T = TypeVar("T")
FIRST_WAIT_S = 0.2
"""Longest wait before the second attempt, in seconds; doubles with each further one."""
LONGEST_WAIT_S = 10.0
"""Longest wait between two attempts, in seconds."""
_random = random.SystemRandom()
_logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Record of an object's content."""

    size_bytes: int
    """Length."""
    sha256: str | None = None
    """Checksum by our own writer, in hex, if it wrote the object."""
    md5: str | None = None
    """Checksum that the ETag is known to be, in hex."""


def verified(chunks: Iterable[bytes], expected: Expected, uri: str) -> Iterator[bytes]:
    """Yield the same chunks, and compare the whole when they end.

    Raises:
        StoreIntegrityError: length or checksum differ; the message names both values.
    """
    name = "SHA-256" if expected.sha256 else "MD5"
    recorded = expected.sha256 or expected.md5
    digest = hashlib.sha256() if expected.sha256 else hashlib.md5(usedforsecurity=False)
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if recorded:
            digest.update(chunk)
        yield chunk
    if size != expected.size_bytes:
        raise _damaged(uri, f"{size} bytes", f"{expected.size_bytes} bytes")
    if recorded and digest.hexdigest() != recorded:
        raise _damaged(uri, f"{name} {digest.hexdigest()}", recorded)


def _damaged(uri: str, found: str, recorded: str) -> StoreIntegrityError:
    return StoreIntegrityError(
        f"{uri} was read with {found}, but {recorded} was recorded when it was written; it was "
        "damaged or altered: restore it or make it again"
    )


@contextmanager
def file_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into the store's error that fits.

    Args:
        action: A verb for the message, such as `write`.
        path: File or directory that the block works on.

    Raises:
        StoreError: the subclass that fits what the operating system said.
    """
    try:
        yield
    except OSError as error:
        kind, advice = _ERRORS.get(error.errno or 0, (StoreError, "check the path and run again"))
        said = error.strerror or type(error).__name__
        raise kind(f"cannot {action} {path}: {said}; {advice.format(action=action)}") from error


class Backoff:
    """The waits between attempts of one operation."""

    def __init__(
        self,
        total_s: float,
        *,
        where: str = "storage",
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_s = total_s
        self._where = where
        self._sleep = sleep
        self._clock = clock
        self._failures = 0
        self._deadline: float | None = None

    def wait(self, error: Exception) -> bool:
        """Wait before the next attempt; return False, at once, if the time is spent."""
        now = self._clock()
        if self._deadline is None:
            self._deadline = now + self._total_s
        left_s = self._deadline - now
        if left_s <= 0:
            return False
        ceiling_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, 20))
        self._failures += 1
        wait_s = min(left_s, _random.uniform(ceiling_s / 2, ceiling_s))
        # The error's class only: its text may hold what does not belong into a log.
        _logger.warning(
            "%s failed with %s (attempt %d); trying again in %.1f s, for %.0f s more",
            self._where, type(error).__name__, self._failures, wait_s, left_s,
        )  # fmt: skip
        self._sleep(wait_s)
        return True

    def reset(self) -> None:
        """Start over: the operation made progress."""
        self._failures = 0
        self._deadline = None


def retrying(
    operation: Callable[[], T], is_transient: Callable[[Exception], bool], backoff: Backoff
) -> T:
    """Call an operation until it succeeds, fails for good, or the time is spent.

    Args:
        operation: What to do; must be safe to do twice.
        is_transient: Whether an error is worth another attempt.
        backoff: The waits.

    Raises:
        Exception: the last error of the operation, as it was raised.
    """
    while True:
        try:
            return operation()
        except Exception as error:
            if not is_transient(error) or not backoff.wait(error):
                raise
