"""Files behind the local store: walking, writing whole or not at all, checksums, locks."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chexradinet.store.file_errors import file_errors

_CHECKSUM = "user.chexradinet.sha256"
# The names of `artifacts.writing_file` and `writing_directory`, and ours: not there yet.
_IN_THE_MAKING = re.compile(r"^\..*\.partial-[0-9a-f]{12}$", re.DOTALL)
_NO_ATTRIBUTES = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_logger = logging.getLogger(__name__)


def walk(root: Path, folder: str, prefix: str) -> Iterator[str]:
    """Yield keys of files and of links below a folder, in the order of their bytes."""
    path = root / folder
    with file_errors("list", path):
        try:
            with os.scandir(path) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
    # As in a bucket, a folder's keys sort by its name with the slash: `a.b` before `a/b`.
    for name, is_folder in sorted(found, key=lambda item: os.fsencode(item[0] + "/" * item[1])):
        key = f"{folder}/{name}" if folder else name
        if _IN_THE_MAKING.match(name) or not (key + "/").startswith(prefix[: len(key) + 1]):
            continue
        if is_folder:
            yield from walk(root, key, prefix)
        elif key.startswith(prefix) and not (root / key).is_dir():
            yield key


@contextmanager
def written(target: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
    """Yield a temporary file beside a target with these bytes and their checksum, on disk."""
    temporary = target.with_name(f".object.partial-{secrets.token_hex(6)}")
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as stream:
            for chunk in chunks:
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            _set_checksum(temporary, digest.hexdigest())
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes and threads that ask the same out of a directory during the block."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _set_checksum(path: Path, sha256: str) -> None:
    try:
        os.setxattr(path, _CHECKSUM, sha256.encode())
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTES:
            raise
        _logger.warning("%s keeps no extended attributes: no checksum is recorded", path.parent)


def checksum(source: Path | int) -> str | None:
    """Return the SHA-256 recorded with a file (a path or an open file), in hex, or None."""
    try:
        return os.getxattr(source, _CHECKSUM).decode()
    except OSError as error:
        # EACCES: reading the file will say so itself, and a listing goes on.
        if error.errno in {*_NO_ATTRIBUTES, errno.ENODATA, errno.EACCES}:
            return None
        raise
