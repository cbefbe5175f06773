"""A directory as an object store.

A write goes to a hidden temporary file and is linked or renamed into place, so an object appears
whole or not at all. The checksum is an extended attribute of the file: it is replaced in the
same instant as the content. File systems without such attributes keep no checksum; that is logged.

Links to files are followed while they stay inside the directory; links to directories are not.
"""

import logging
import os
import stat as modes
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from chexradinet.errors import (
    ConfigError,
    StoreAccessError,
    StoreConflictError,
    StoreNotFoundError,
)
from chexradinet.store.checksums import Expected, file_chunks, stream_chunks, verified
from chexradinet.store.file_errors import file_errors
from chexradinet.store.local_files import checksum, locked, sync_directory, walk, written
from chexradinet.store.protocol import ObjectInfo, ObjectStore
from chexradinet.store.uri import check_key

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

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the files whose key starts with a prefix, in key order; see `ObjectStore.list`.

        Links that leave the directory or lead nowhere, pipes and devices, and names that are no
        valid Unicode are left out and counted in one warning.
        """
        folder = prefix.rpartition("/")[0]
        if folder:
            check_key(folder, str(self._root))
        if os.path.realpath(self._root / folder) != str(self._root / folder):
            return
        left_out = 0
        for key in walk(self._root, folder, prefix):
            path = self._root / key
            with file_errors("read", path):
                try:
                    info = self._info(key, self._inside(key))
                except FileNotFoundError:
                    left_out += path.is_symlink()  # else it was removed since its folder was read
                    continue
                except (StoreAccessError, StoreNotFoundError, ConfigError):
                    left_out += 1
                    continue
                yield info
        if left_out:
            _logger.warning(
                "left out %d links that leave %s or lead nowhere, pipes, or names not in Unicode",
                left_out, self._root,
            )  # fmt: skip

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield a file's bytes, verified; see `ObjectStore.chunks`."""
        path = self._inside(key)
        with file_errors("read", path):
            self._info(key, path)  # opening a pipe would wait for ever
            with path.open("rb") as stream:
                info = self._info(key, path, stream.fileno())
                expected = Expected(size_bytes=info.size_bytes, sha256=info.sha256)
                yield from verified(stream_chunks(stream), expected, info.uri)

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write a file, replacing an older one; see `ObjectStore.put`."""
        path = self._writable(key)
        with file_errors("write", path), written(path, [data]) as temporary:
            if if_match is None:
                temporary.replace(path)
            else:
                with locked(path.parent):
                    self._require_etag(key, path, if_match)
                    temporary.replace(path)
            sync_directory(path.parent)
            return self._info(key, path).etag

    def create(self, key: str, data: bytes) -> str:
        """Write a file that must not exist yet; see `ObjectStore.create`."""
        path = self._writable(key)
        with file_errors("write", path), written(path, [data]) as temporary:
            try:
                # Atomic everywhere, over NFS too, and never seen half written: unlike O_EXCL.
                os.link(temporary, path)
            except FileExistsError as error:
                raise StoreConflictError(
                    f"{path} exists, and it was to be created: another run was faster"
                ) from error
            sync_directory(path.parent)
            return self._info(key, path).etag

    def put_file(self, key: str, path: Path) -> str:
        """Copy a file of any size; see `ObjectStore.put_file`."""
        target = self._writable(key)
        with file_errors("read", path):
            path.open("rb").close()
        with file_errors("write", target), written(target, file_chunks(path)) as temporary:
            temporary.replace(target)
            sync_directory(target.parent)
            return self._info(key, target).etag

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
            raise StoreNotFoundError(f"{path} is no regular file; the path of a file is needed")
        sha256 = checksum(source)
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
                f"{path} has changed: its ETag is {found}, needed is {needed}; read it again"
            )
