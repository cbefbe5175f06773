"""A directory as an object store.

A write goes to a hidden temporary file and is linked or renamed into place, so an object appears
whole or not at all. The checksum is an extended attribute of the file: it is replaced in the
same instant as the content. File systems without such attributes keep no checksum; that is logged.

Links to files are followed while they stay inside the directory; links to directories are not.
"""

import builtins
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat as modes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from chexradinet.artifacts import sync
from chexradinet.errors import (
    ConfigError,
    StoreAccessError,
    StoreConflictError,
    StoreNotFoundError,
)
from chexradinet.store.protocol import (
    CHUNK_BYTES,
    Expected,
    ObjectInfo,
    ObjectStore,
    file_errors,
    verified,
)
from chexradinet.store.uri import check_key

_CHECKSUM = "user.chexradinet.sha256"
# The names of `artifacts.writing_file` and `writing_directory`, and ours: not there yet.
_IN_THE_MAKING = re.compile(r"^\..*\.(partial-[0-9a-f]{12}|before-chexradinet)$", re.DOTALL)
_NO_ATTRIBUTES = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_logger = logging.getLogger(__name__)


class LocalStore(ObjectStore):
    """The files below one directory, which is made with the first object."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))

    def uri_of(self, key: str) -> str:
        """Return the absolute path of a key."""
        return str(self._root / key)

    def stat(self, key: str) -> ObjectInfo:
        """Return what is known of a file; see `ObjectStore.stat`."""
        path = self._inside(key)
        with file_errors("read", path):
            return self._info(key, path)

    def list(
        self, prefix: str = "", left_out: builtins.list[str] | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield the files whose key starts with a prefix, in key order; see `ObjectStore.list`.

        Links that leave the directory or lead nowhere, pipes and devices, and names that are not
        valid Unicode are left out and counted in one warning.
        """
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder, str(self._root))
        if os.path.realpath(self._root / folder) != str(self._root / folder):
            return
        skipped: builtins.list[str] = []
        for key in _walk(self._root, folder, prefix, left_out):
            info = self._listed(key, skipped)
            if info is not None:
                yield info
        if left_out is not None:
            left_out += skipped
        if skipped:
            _logger.warning(
                "left out %d links that leave %s or lead nowhere, pipes, or names not in Unicode",
                len(skipped), self._root,
            )  # fmt: skip

    def _listed(self, key: str, skipped: builtins.list[str]) -> ObjectInfo | None:
        """Return what is known of a file; None if it is gone, or is skipped and noted there."""
        path = self._root / key
        with file_errors("read", path):
            try:
                return self._info(key, self._inside(key))
            except FileNotFoundError:
                leads_nowhere = path.is_symlink()  # else it was removed since its folder was read
            except (StoreAccessError, StoreNotFoundError, ConfigError):
                leads_nowhere = True
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                leads_nowhere = True
        skipped += [key] * leads_nowhere
        return None

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield a file's bytes, verified; see `ObjectStore.chunks`."""
        path = self._inside(key)
        with file_errors("read", path):
            self._info(key, path)  # opening a pipe would wait for ever
            with path.open("rb") as stream:
                info = self._info(key, path, stream.fileno())
                expected = Expected(size_bytes=info.size_bytes, sha256=info.sha256)
                yield from verified(_chunks(stream), expected, info.uri)

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write a file, replacing an older one; see `ObjectStore.put`."""
        return self._replace(key, [data], if_match)

    def put_file(self, key: str, path: Path) -> str:
        """Copy a file of any size; see `ObjectStore.put_file`."""
        with file_errors("read", path), path.open("rb") as stream:
            return self._replace(key, _chunks(stream), None)

    def create(self, key: str, data: bytes) -> str:
        """Write a file that must not exist yet; see `ObjectStore.create`."""
        path = self._writable(key)
        with file_errors("write", path), _written(path, [data]) as temporary:
            try:
                # Atomic everywhere, over NFS too, and never seen half written: unlike O_EXCL.
                os.link(temporary, path)
            except FileExistsError as error:
                raise StoreConflictError(
                    f"{path} exists, and it was to be created: another run was faster"
                ) from error
            sync(path.parent)
            return self._info(key, path).etag

    def _replace(self, key: str, chunks: Iterable[bytes], if_match: str | None) -> str:
        path = self._writable(key)
        with file_errors("write", path), _written(path, chunks) as temporary:
            if if_match is None:
                temporary.replace(path)
            else:
                with _locked(path.parent):
                    self._require_etag(key, path, if_match)
                    temporary.replace(path)
            sync(path.parent)
            return self._info(key, path).etag

    def delete(self, key: str) -> None:
        """Remove a file; see `ObjectStore.delete`."""
        path = self._inside(key)
        with file_errors("remove", path):
            path.unlink(missing_ok=True)

    def _inside(self, key: str) -> Path:
        check_key(key, str(self._root))
        path = self._root / key
        if not Path(os.path.realpath(path)).is_relative_to(self._root):
            raise StoreAccessError(
                f"{path} is behind a link that leaves {self._root}; copy what it leads to, "
                "or give the directory that holds it"
            )
        return path

    def _writable(self, key: str) -> Path:
        # The last part may be a link: it is replaced, not followed.
        parent, _, name = key.rpartition("/")
        check_key(key, str(self._root))
        path = (self._inside(parent) if parent else self._root) / name
        with file_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _info(self, key: str, path: Path, handle: int | None = None) -> ObjectInfo:
        source = path if handle is None else handle
        found = os.stat(source)  # noqa: PTH116 (a Path cannot hold an open file)
        if not modes.S_ISREG(found.st_mode):
            raise StoreNotFoundError(f"{path} is not a regular file; give the path of a file")
        sha256 = _recorded_checksum(source)
        return ObjectInfo(
            key=key,
            uri=str(path),
            size_bytes=found.st_size,
            etag=f"{found.st_mtime_ns:x}-{found.st_size:x}-{(sha256 or f'{found.st_ino:x}')[:16]}",
            modified=datetime.fromtimestamp(found.st_mtime, UTC),
            sha256=sha256,
        )

    def _require_etag(self, key: str, path: Path, needed: str) -> None:
        try:
            found = self._info(key, path).etag
        except FileNotFoundError:
            found = "none: the file is gone"
        if found != needed:
            raise StoreConflictError(
                f"{path} has changed: its ETag is {found}, it must be {needed}; read it again"
            )


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    return iter(partial(stream.read, CHUNK_BYTES), b"")


def _walk(root: Path, folder: str, prefix: str, left_out: list[str] | None = None) -> Iterator[str]:
    """Yield keys of files and of links below a folder, in the order of their bytes.

    Args:
        root: The store's directory.
        folder: Folder below it.
        prefix: Start of the keys.
        left_out: Collects the folders that may not be read; None makes them an error.
    """
    path = root / folder
    with file_errors("list", path):
        try:
            with os.scandir(path) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError:
            if left_out is None:
                raise
            left_out.append(folder)
            return
    # As in a bucket, a folder's keys sort by its name with the slash: `a.b` before `a/b`.
    for name, is_folder in sorted(found, key=lambda item: os.fsencode(item[0] + "/" * item[1])):
        key = f"{folder}/{name}" if folder else name
        if _IN_THE_MAKING.match(name) or not (key + "/").startswith(prefix[: len(key) + 1]):
            continue
        if is_folder:
            yield from _walk(root, key, prefix, left_out)
        elif key.startswith(prefix) and not (root / key).is_dir():
            yield key


@contextmanager
def _written(target: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
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
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes and threads that ask the same out of a directory during the block."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _set_checksum(path: Path, sha256: str) -> None:
    try:
        os.setxattr(path, _CHECKSUM, sha256.encode())
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTES:
            raise
        _logger.warning("%s keeps no extended attributes: no checksum is recorded", path.parent)


def _recorded_checksum(source: Path | int) -> str | None:
    """Return the SHA-256 recorded with a file (a path or an open file), in hex, or None."""
    try:
        return os.getxattr(source, _CHECKSUM).decode()
    except OSError as error:
        # EACCES: reading the file will say so itself, and a listing continues.
        if error.errno in {*_NO_ATTRIBUTES, errno.ENODATA, errno.EACCES}:
            return None
        raise
