"""Errors of the file system, said in the store's words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chexradinet.errors import (
    StoreAccessError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_LOST = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}


@contextmanager
def file_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into the store's error that fits.

    Args:
        action: A verb for the message, such as `write`.
        path: What the block works on.

    Raises:
        StoreError: the subclass that fits what the operating system said.
    """
    try:
        yield
    except OSError as error:
        raise _translated(error, action, path) from error


def _translated(error: OSError, action: str, path: Path) -> StoreError:
    start = f"cannot {action} {path}: {error.strerror or type(error).__name__}"
    if error.errno in _FULL:
        return StoreFullError(f"{start}; free space there, or choose another place, and run again")
    if error.errno in _DENIED:
        return StoreAccessError(f"{start}; allow this user to {action} there")
    if error.errno in _LOST:
        return StoreUnavailableError(f"{start}; check the disk or the network mount and run again")
    if error.errno == errno.ENOENT:
        return StoreNotFoundError(f"{start}; check the path")
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return StoreNotFoundError(f"{start}; the path of a file in a directory is needed")
    return StoreError(f"{start}; check the path and run again")
