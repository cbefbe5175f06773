"""Whole directories by URI.

A directory is complete when its head documents (`*.json` at its top, such as `dataset.json`) are
there. They are uploaded after everything else, and a folder that is replaced loses them first: so a
reader that finds the head finds the rest, and a directory whose upload was killed has no head.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from chexradinet.artifacts import sha256_of, writing_directory
from chexradinet.config import StoreConfig
from chexradinet.errors import StoreError, StoreIntegrityError, StoreNotFoundError
from chexradinet.store.opening import DEFAULT, open_object, open_store
from chexradinet.store.protocol import ObjectInfo, ObjectStore
from chexradinet.store.uri import check_key, parse_uri

T = TypeVar("T")
_log = logging.getLogger(__name__)

NUM_TRANSFERS = 4
"""Files of a directory that are transferred at once; each upload holds one part in memory."""


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
