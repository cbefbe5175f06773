"""Checksums: what was read is what was written. Errors of the file system in the store's words."""

import errno
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chexradinet.errors import (
    StoreAccessError,
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


def stream_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield what is left of an open file, in pieces of at most 1 MiB."""
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, in pieces of at most 1 MiB."""
    with path.open("rb") as stream:
        yield from stream_chunks(stream)


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
