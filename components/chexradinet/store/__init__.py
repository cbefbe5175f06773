"""Object storage by URI: a local directory or MinIO and other S3 stores, behind one protocol.

A whole directory is complete when its head documents (`*.json` at its top, such as `dataset.json`)
are there. They are uploaded after everything else, and a folder that is replaced loses them first:
so a reader that finds the head finds the rest, and a directory whose upload was killed has no head.

Finished artifacts are kept so that equal work is done once. Below the URI in
`CHEXRADINET_CHECKPOINT_URI`, in a folder named by the digest of the work (inputs, settings,
release), lies a copy of what a stage made, with a list of its files' SHA-256 that is written last.
A stage that is to do the same work takes the copy, if every file is as listed: after a later stage
failed, a run that is submitted again trains nothing twice. A bucket expires copies by its lifecycle
rule; in a folder of this machine those older than `KEPT_DAYS` are removed when another is kept.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from chexradinet.artifacts import (
    Head,
    put_in_place,
    read_document,
    sha256_of,
    write_document,
    writing_directory,
)
from chexradinet.config import StoreConfig, digest_of
from chexradinet.errors import ArtifactError, StoreError, StoreIntegrityError, StoreNotFoundError
from chexradinet.store.local import LocalStore
from chexradinet.store.protocol import ObjectInfo, ObjectStore
from chexradinet.store.uri import (
    S3Access,
    access_from_environment,
    check_key,
    checkpoint_folder,
    parse_uri,
)
from chexradinet.version import __version__

DEFAULT = StoreConfig()
"""Settings of the functions that take a URI."""
T = TypeVar("T")
_log = logging.getLogger(__name__)
NUM_TRANSFERS = 4
"""Files of a directory that are transferred at once; each upload holds one part in memory."""
KEPT_DAYS = 30
"""Days that a finished artifact is kept."""
_LIST, _KIND, _SCHEMA = "finished.json", "finished", 1


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


def exists(uri: str, config: StoreConfig = DEFAULT) -> bool:
    """Tell whether there is an object, a file or a folder with this URI.

    Raises:
        StoreBucketError: there is no such bucket.
    """
    path = parse_uri(uri).path
    if path is not None:
        return path.exists()
    store, key = open_object(uri, config)
    if key and not key.endswith("/") and store.exists(key):
        return True
    store, prefix = open_store(uri, config)
    return next(store.list(prefix), None) is not None


def upload_directory(path: Path, uri: str, config: StoreConfig = DEFAULT) -> None:
    """Replace a folder's files with those below a directory, head documents last.

    Objects of the folder that the directory does not have stay as they are. Needs the right to
    delete; a folder that is named by what it holds is written with `add_directory`.

    Raises:
        StoreNotFoundError: there is no such directory, or no file in it.
    """
    files, heads = _files_of(path)
    store, prefix = open_store(uri, config)
    for file in heads:
        store.delete(prefix + file.name)

    def put(file: Path) -> None:
        store.put_file(_key(prefix, path, file), file)

    _upload(files, heads, put)


def add_directory(path: Path, uri: str, config: StoreConfig = DEFAULT) -> None:
    """Copy to a folder the files below a directory that it does not hold, head documents last.

    Nothing is deleted. A file that is there is read and left if its bytes are the same; another
    one, which a bundle's folder only holds if it was altered, is replaced and a warning logged.

    Raises:
        StoreNotFoundError: there is no such directory, or no file in it.
    """
    files, heads = _files_of(path)
    store, prefix = open_store(uri, config)
    sizes = {info.key: info.size_bytes for info in store.list(prefix)}

    def add(file: Path) -> None:
        key = _key(prefix, path, file)
        if key in sizes:
            if sizes[key] == file.stat().st_size and _holds(store, key, file):
                return
            _log.warning("%s differs from what is published now; replaced", store.uri_of(key))
        store.put_file(key, file)

    _upload(files, heads, add)


def _files_of(path: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise StoreNotFoundError(f"{path} is not a directory with files; nothing to upload")
    heads = [file for file in files if file.parent == path and file.suffix == ".json"]
    return [file for file in files if file not in heads], heads


def _upload(files: list[Path], heads: list[Path], upload: Callable[[Path], None]) -> None:
    _at_once(upload, files)
    for file in heads:
        upload(file)


def _key(prefix: str, path: Path, file: Path) -> str:
    return prefix + file.relative_to(path).as_posix()


def _holds(store: ObjectStore, key: str, file: Path) -> bool:
    digest = hashlib.sha256()
    try:
        for chunk in store.chunks(key):
            digest.update(chunk)
    except StoreIntegrityError:
        return False
    return digest.hexdigest() == sha256_of(file)


def download_directory(uri: str, target: Path, config: StoreConfig = DEFAULT) -> None:
    """Copy all objects below a folder into a directory, which appears when all are there.

    An older directory at `target` is replaced.

    Raises:
        StoreNotFoundError: there is no object below the folder.
        StoreIntegrityError: an object's length or checksum are not as recorded.
        StoreError: a key cannot be the name of a file.
    """
    store, prefix = open_store(uri, config)
    infos = list(store.list(prefix))
    if not infos:
        raise StoreNotFoundError(f"{uri} holds nothing; check the URI, or run what writes it")
    for info in infos:
        check_key(info.key[len(prefix) :], uri)
    with writing_directory(target, None) as temporary:

        def download(info: ObjectInfo) -> None:
            file = temporary / info.key[len(prefix) :]
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise StoreError(
                    f"{uri} holds both an object and a folder of one name, above {info.key!r}; a "
                    "directory cannot: rename one"
                ) from error
            store.get_file(info.key, file)

        _at_once(download, infos)


def _at_once(transfer: Callable[[T], None], items: Iterable[T]) -> None:
    """Do the transfers with a few threads; on the first failure start no more, and raise it."""
    pool = ThreadPoolExecutor(NUM_TRANSFERS, thread_name_prefix="transfer")
    try:
        for _ in pool.map(transfer, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


class FinishedWork:
    """One piece of work, and where its result is kept."""

    def __init__(
        self, stage: str, work: str, *, reuse: bool, config: StoreConfig = DEFAULT
    ) -> None:
        """Name the work.

        Args:
            stage: Name of the stage.
            work: Digest of all inputs and settings that decide its result.
            reuse: Whether a result is taken; one is kept in any case.
            config: How the store is talked to.
        """
        self._stage = stage
        self._reuse = reuse
        self._config = config
        self._uri = checkpoint_folder(f"finished-{digest_of([__version__, stage, work])}")

    def take(self, target: Path, head: Head) -> bool:
        """Put the kept result at `target`, and return whether there is one that is whole.

        Raises:
            StoreError: the store cannot be read.
        """
        if not self._uri or not self._reuse:
            return False
        store, prefix = open_store(self._uri, self._config)
        if not store.exists(prefix + _LIST):
            return False
        with TemporaryDirectory(prefix=f".{target.name}.kept-", dir=target.parent) as scratch:
            copy = Path(scratch) / "copy"
            try:
                download_directory(self._uri, copy, self._config)
                listed = read_document(copy / _LIST, _KIND, _SCHEMA)["files"]
                if listed != _digests_of(copy):
                    raise ArtifactError("its files are not those that were kept")
            except (ArtifactError, StoreIntegrityError, StoreNotFoundError) as error:
                _log.warning(
                    "%s is done again, what is kept of it is unusable: %s", self._stage, error
                )
                return False
            (copy / _LIST).unlink()
            put_in_place(copy, target, head)
        _log.info("%s was done before; taken from %s", self._stage, self._uri)
        return True

    def keep(self, made: Path) -> None:
        """Keep a result; a store that fails costs the copy, not the run."""
        if not self._uri:
            return
        try:
            upload_directory(made, self._uri, self._config)
            self._list(made)
        except StoreError as error:
            _log.warning("the result of %s is not kept: %s", self._stage, error)
        _remove_expired(self._uri)

    def share(self, made: Path) -> None:
        """Keep what other machines need, unless it is there; they may read it meanwhile.

        Raises:
            StoreError: the store does not take it.
        """
        store, prefix = open_store(self._uri, self._config)
        if not store.exists(prefix + _LIST):
            add_directory(made, self._uri, self._config)
            self._list(made)

    def _list(self, made: Path) -> None:
        store, prefix = open_store(self._uri, self._config)
        with TemporaryDirectory(prefix="chexradinet-finished-") as scratch:
            listed = Path(scratch) / _LIST
            write_document(listed, _KIND, _SCHEMA, {"files": _digests_of(made)})
            store.put_file(prefix + _LIST, listed)


def _digests_of(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _LIST)
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def _remove_expired(uri: str) -> None:
    own = parse_uri(uri).path
    if own is None:
        return
    oldest = time.time() - KEPT_DAYS * 86_400
    for note in own.parent.glob(f"finished-*/{_LIST}"):
        if note.stat().st_mtime < oldest:
            shutil.rmtree(note.parent, ignore_errors=True)
