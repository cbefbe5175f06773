"""Objects and whole directories by URI: what the stages of the pipeline use.

A directory is complete when its head documents (`*.json` at its top, such as `dataset.json`) are
there: they are removed before anything else is replaced and uploaded after everything else. So a
reader that finds the head finds the rest, and a directory whose upload was killed has no head.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from chexradinet.artifacts import writing_directory
from chexradinet.config import StoreConfig
from chexradinet.errors import StoreError, StoreNotFoundError
from chexradinet.store.opening import DEFAULT, open_object, open_store, path_of
from chexradinet.store.protocol import ObjectInfo
from chexradinet.store.uri import check_key, parse_uri

T = TypeVar("T")

NUM_TRANSFERS = 4
"""Files of a directory that are transferred at once; each upload holds one part in memory."""


def read_bytes(uri: str, config: StoreConfig = DEFAULT) -> bytes:
    """Return an object's bytes, verified.

    Raises:
        StoreNotFoundError: there is no such object.
        StoreIntegrityError: length or checksum are not as recorded.
    """
    store, key = open_object(uri, config)
    return store.get(key)


def write_bytes(data: bytes, uri: str, config: StoreConfig = DEFAULT) -> None:
    """Write an object, replacing an older one."""
    store, key = open_object(uri, config)
    store.put(key, data)


def exists(uri: str, config: StoreConfig = DEFAULT) -> bool:
    """Tell whether there is an object, a file or a folder with this URI.

    Raises:
        StoreBucketError: there is no such bucket.
    """
    location = parse_uri(uri)
    path = path_of(location)
    if path is not None:
        return path.exists()
    store, key = open_object(uri, config)
    if key and not key.endswith("/") and store.exists(key):
        return True
    store, prefix = open_store(uri, config)
    return next(store.list(prefix), None) is not None


def list_uris(uri: str, config: StoreConfig = DEFAULT) -> Iterator[ObjectInfo]:
    """Yield the objects below a folder in key order, or the one object that the URI names.

    Each one's `uri` can be given to `read_bytes`. A folder without objects yields nothing.

    Raises:
        StoreBucketError: there is no such bucket.
    """
    path = path_of(parse_uri(uri))
    if path is not None and path.is_file():
        store, key = open_object(uri, config)
        yield store.stat(key)
        return
    store, prefix = open_store(uri, config)
    found = False
    for info in store.list(prefix):
        found = True
        yield info
    if not found and path is None and prefix:
        store, key = open_object(uri, config)
        if not key.endswith("/") and store.exists(key):
            yield store.stat(key)


def upload_directory(path: Path, uri: str, config: StoreConfig = DEFAULT) -> None:
    """Copy all files below a directory to a folder, head documents last.

    Objects of the folder that the directory does not have stay as they are.

    Raises:
        StoreNotFoundError: there is no such directory, or no file in it.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise StoreNotFoundError(f"{path} is no directory with files; there is nothing to upload")
    heads = [file for file in files if file.parent == path and file.suffix == ".json"]
    store, prefix = open_store(uri, config)

    def upload(file: Path) -> None:
        store.put_file(prefix + file.relative_to(path).as_posix(), file)

    for file in heads:
        store.delete(prefix + file.name)
    _at_once(upload, [file for file in files if file not in heads])
    for file in heads:
        upload(file)


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
