"""Where X-rays come from: what can be listed and opened, and the one place that knows how.

`ingest` needs three things of a source: a local folder with its tables, the names of its files, and
the bytes of one of them. Sources are folders, prefixes of buckets and DICOMweb archives. Files are
read whole, one at a time in each worker, and never kept: memory does not grow with their number. A
store that fails for good ends the run, and its finished shards are kept for the next.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from chexradinet.config import IngestConfig, StoreConfig
from chexradinet.dicom import is_dicomweb, parse_archive
from chexradinet.errors import (
    RejectedImageError,
    SourceError,
    StoreAccessError,
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreIntegrityError,
    StoreItemError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from chexradinet.records import RejectReason
from chexradinet.store import open_store
from chexradinet.store.protocol import ObjectStore
from chexradinet.store.uri import parse_uri

DICOM_SUFFIXES = (".dcm", ".dicom")
"""Ends of names of DICOM files."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUFFIXES = (*PICTURE_SUFFIXES, *DICOM_SUFFIXES)
"""Files that count as X-rays; others are tables, licences and the like."""
_TEXTS = (".csv", ".tsv", ".txt", ".json", ".xml", ".md", ".log")
_DOCUMENT_SUFFIXES = (
    *_TEXTS,
    *(f"{suffix}.gz" for suffix in _TEXTS),
    *(".html", ".htm", ".css", ".js", ".pdf", ".rtf", ".doc", ".docx", ".xls", ".xlsx"),
    *(".yaml", ".yml"),
)
_DOCUMENTS = ("dicomdir", "autorun.inf", "desktop.ini", "thumbs.db")
"""Names of what comes with X-rays: a medium's index, and what systems leave in folders."""
KINDS_READ = "PNG, JPEG, DICOM"
_MAX_DEPTH = 64
"""Most folders in one another; deeper ones are left out."""
MAX_FILE_BYTES = 512 * 1024 * 1024
"""Largest file that is read."""


TABLE_SUFFIXES = (".csv", ".csv.gz", ".txt", ".txt.gz")
_OF_ONE_FILE: dict[type[StoreError], tuple[RejectReason, str]] = {
    StoreNotFoundError: (RejectReason.MISSING, "it is gone since the source was listed"),
    StoreConflictError: (RejectReason.UNREADABLE, "it was replaced while it was read"),
    StoreIntegrityError: (RejectReason.UNREADABLE, "it came damaged, or something else came"),
    StoreItemError: (RejectReason.UNAVAILABLE, "the archive failed on it, also after repeating"),
}
_OF_ALL: dict[type[StoreError], str] = {
    StoreAccessError: "the credentials are refused: they have expired, were withdrawn, or do not "
    "allow every file to be read; renew them",
    StoreUnavailableError: "the store does not answer, also after repeating; bring it back",
    StoreBucketError: "the bucket is gone; bring it back",
}


class Listed(NamedTuple):
    """One file of a source."""

    name: str
    """Relative to the source, with forward slashes."""
    stamp: str
    """Changes with the content, as far as the source tells without reading it."""


class Source(Protocol):
    """A set of image files with label tables; picklable, because workers open the files."""

    @property
    def tables(self) -> Path:
        """Local folder with the label tables at its top."""
        ...

    def files(self) -> Iterator[Listed]:
        """Yield all files of the source that are not hidden, in any order.

        A folder in it that cannot be listed comes as one entry whose name ends in a slash.

        Raises:
            SourceError: the source itself cannot be listed.
            StoreError: the store cannot be listed.
        """
        ...

    def read(self, file: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            RejectedImageError: this file cannot be read; the others may.
            StoreError: nothing can be read any more; the message names the source, not the file.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of the file system and all below it, symbolic links followed."""

    path: Path
    labels: Path | None = None

    @property
    def tables(self) -> Path:
        """The folder itself, unless another holds the tables."""
        return self.labels or self.path

    def files(self) -> Iterator[Listed]:
        """Yield the files below the folder; hidden ones are left out."""
        yield from _walk(self.path, "", ())

    def read(self, file: str) -> bytes:
        """Return the bytes of a file below the folder."""
        try:
            status = (self.path / file).stat()
            if not stat.S_ISREG(status.st_mode):
                raise RejectedImageError(RejectReason.UNREADABLE, "it is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise too_large(status.st_size)
            return (self.path / file).read_bytes()
        except FileNotFoundError as error:
            raise RejectedImageError(RejectReason.MISSING, "there is no such file") from error
        except OSError as error:
            detail = error.strerror or type(error).__name__
            raise RejectedImageError(RejectReason.UNREADABLE, detail) from error


def too_large(num_bytes: int) -> RejectedImageError:
    """Return the rejection of a file that is not read for its size."""
    detail = f"{num_bytes} bytes; at most {MAX_FILE_BYTES} are read"
    return RejectedImageError(RejectReason.TOO_LARGE, detail)


def is_xray_name(name: str, any_dicom: bool) -> bool:
    """Tell whether a file counts as an X-ray by its name.

    Args:
        name: Relative to the source.
        any_dicom: Count every file but documents: archives and media name DICOM files by numbers,
            by UIDs, or with suffixes of their own. What is none gets a reason when it is read.
    """
    return name.casefold().endswith(IMAGE_SUFFIXES) or (any_dicom and not is_document(name))


def is_document(name: str) -> bool:
    """Tell whether a file is a table, a text, or another document by its name: never an X-ray."""
    bare = PurePosixPath(name).name.casefold()
    return bare in _DOCUMENTS or bare.endswith(_DOCUMENT_SUFFIXES)


@contextmanager
def open_source(source: str, config: IngestConfig, labels: str = "") -> Iterator[Source]:
    """Open a source by what the user wrote.

    Args:
        source: A path, `file://`, `s3://`, `minio://` or `dicomweb://`.
        config: How a store is talked to.
        labels: Folder of the label tables, also in a bucket; empty if they lie in the source.

    Raises:
        SourceError: it is missing, not a folder, or not allowed to be read.
        StoreError: the store does not answer, or does not let us in.
        ConfigError: the URI cannot be read.
    """
    if labels:
        if "://" not in labels and Path(labels).is_file():
            raise SourceError(f"labels {labels} is a file; give the folder that the table lies in")
        with open_source(labels, config) as beside, _opened(source, config, beside.tables) as found:
            yield found
    else:
        with _opened(source, config, None) as found:
            yield found


@contextmanager
def _opened(source: str, config: IngestConfig, labels: Path | None) -> Iterator[Source]:
    with tempfile.TemporaryDirectory(prefix="chexradinet-tables-") as scratch:
        folder = Path(scratch)
        if is_dicomweb(source):
            parse_archive(source, dates_needed=True)
            yield Archive(source, config.store, labels or folder)
            return
        location = parse_uri(source)
        if location.bucket is None:
            path = Path(location.key) if "://" in source else Path(source)
            _require_folder(path, source)
            yield Folder(path, labels)
            return
        store, prefix = open_store(source, config.store)
        if next(iter(store.list(prefix)), None) is None:
            raise SourceError(f"{source} holds nothing; check bucket and prefix")
        if labels is None:
            _copy_tables(store, prefix, folder)
        yield Bucket(source, config.store, labels or folder)


def _require_folder(path: Path, source: str) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise SourceError(
            f"{source} does not exist; give a folder with images and a label table"
        ) from None
    except OSError as error:
        raise SourceError(
            f"{source} cannot be read: {error.strerror}; give another path"
        ) from error
    if not path.is_dir():
        raise SourceError(f"{source} is a file; give the folder that holds images and label table")


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[Listed]:
    real = os.path.realpath(folder)
    if real in above or len(above) > _MAX_DEPTH:
        yield Listed(prefix, "")  # a link to a folder that this one is in
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if above:
            yield Listed(prefix, "")
            return
        raise SourceError(
            f"folder {str(folder)!r} cannot be listed: {error.strerror}; check its rights"
        ) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, real))
        else:
            yield Listed(prefix + entry.name, _stamp(entry))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads in a circle, or where we may not look: reading says so


def _stamp(entry: "os.DirEntry[str]") -> str:
    try:
        status = entry.stat()
    except OSError:
        return ""  # a link that leads nowhere: reading says so
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True)
class Bucket:
    """The objects below a prefix of a bucket."""

    uri: str
    config: StoreConfig
    tables: Path

    def files(self) -> Iterator[Listed]:
        """Yield the objects below the prefix; hidden ones and folder markers are left out."""
        store, prefix = open_store(self.uri, self.config)
        for info in store.list(prefix):
            name = info.key[len(prefix) :]
            if not any(part.startswith(".") or not part for part in name.split("/")):
                yield Listed(name, f"{info.size_bytes}-{info.etag}")

    def read(self, file: str) -> bytes:
        """Return the bytes of an object, verified."""

        def whole() -> bytes:
            store, prefix = open_store(self.uri, self.config)
            parts, size = [], 0
            for chunk in store.chunks(prefix + file):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise too_large(size)
                parts.append(chunk)
            return b"".join(parts)

        return _read(whole, self.uri)


@dataclass(frozen=True)
class Archive:
    """The radiographs of a DICOMweb archive whose studies are of the given dates."""

    uri: str
    config: StoreConfig
    tables: Path

    def files(self) -> Iterator[Listed]:
        """Yield the instances that a search finds; an instance of a UID never changes."""
        # Here and below, because the client is an optional package.
        from chexradinet.dicom.web import list_instances

        start = len(parse_archive(self.uri, dates_needed=True).uri) + 1
        left_out: list[str] = []
        for found in list_instances(self.uri, self.config, left_out):
            yield Listed(found.uri[start:], "")
        for study in left_out:
            yield Listed(f"studies/{study}/", "")

    def read(self, file: str) -> bytes:
        """Return a radiograph as a DICOM file."""
        from chexradinet.dicom.web import fetch

        address = parse_archive(self.uri, dates_needed=True).uri
        return _read(lambda: fetch(f"{address}/{file}", self.config), address)


def _read(whole: Callable[[], bytes], source: str) -> bytes:
    try:
        return whole()
    except RejectedImageError:
        raise
    except StoreError as error:
        for kind, (reason, detail) in _OF_ONE_FILE.items():
            if isinstance(error, kind) and not isinstance(error, StoreBucketError):
                raise RejectedImageError(reason, detail) from None
        said = next((text for kind, text in _OF_ALL.items() if isinstance(error, kind)), None)
        said = said or f"the store refuses ({type(error).__name__}); its log says more"
        # Not the store's own text: it names the object, and that may name a patient.
        raise type(error)(
            f"reading from {source} has failed: {said}, then run again: finished shards are kept"
        ) from None


def _copy_tables(store: ObjectStore, prefix: str, folder: Path) -> None:
    for info in store.list(prefix):
        name = info.key[len(prefix) :]
        if "/" not in name and name.casefold().endswith(TABLE_SUFFIXES):
            store.get_file(info.key, folder / name)
