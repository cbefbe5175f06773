"""Sources that are not in the file system: buckets and DICOMweb archives.

Files are read whole, one at a time in each worker, and never kept: memory does not grow with their
number. A store that fails for good ends the run, and its finished shards are kept for the next.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from chexradinet.config import StoreConfig
from chexradinet.dicom.web_uri import parse_archive
from chexradinet.errors import (
    RejectedImageError,
    SourceError,
    StoreAccessError,
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreIntegrityError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from chexradinet.ingest.sources import MAX_FILE_BYTES, Listed, too_large
from chexradinet.records import RejectReason
from chexradinet.store import ObjectStore, open_store

_TABLE_SUFFIXES = (".csv", ".csv.gz", ".txt", ".txt.gz")
_OF_ONE_FILE: dict[type[StoreError], tuple[RejectReason, str]] = {
    StoreNotFoundError: (RejectReason.MISSING, "it is gone since the source was listed"),
    StoreConflictError: (RejectReason.UNREADABLE, "it was replaced while it was read"),
    StoreIntegrityError: (RejectReason.UNREADABLE, "length or checksum are not as recorded"),
}
_OF_ALL: dict[type[StoreError], str] = {
    StoreAccessError: "the credentials are refused: they have expired, were withdrawn, or do not "
    "allow every file to be read; renew them",
    StoreUnavailableError: "the store does not answer, also after repeating; bring it back",
    StoreBucketError: "the bucket is gone; bring it back",
}


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
        for found in list_instances(self.uri, self.config):
            yield Listed(found.uri[start:], "")

    def read(self, file: str) -> bytes:
        """Return a radiograph as a DICOM file."""
        from chexradinet.dicom.web import InstanceRef, fetch

        address = parse_archive(self.uri, dates_needed=True).uri
        _, study, _, series, _, image = (unquote(part) for part in file.split("/"))
        wanted = InstanceRef(
            uri=f"{address}/{file}", study_uid=study, series_uid=series, sop_uid=image, modality=""
        )
        # The client hands out a bytearray where the answer has parts.
        return _read(lambda: bytes(fetch(wanted, self.config)), address)


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


@contextmanager
def open_bucket(uri: str, config: StoreConfig, labels: Path | None) -> Iterator[Bucket]:
    """Open a prefix of a bucket; its tables are copied into a temporary folder.

    Raises:
        SourceError: nothing is below the prefix.
        StoreError: the store does not answer, or does not let us in.
    """
    store, prefix = open_store(uri, config)
    if next(iter(store.list(prefix)), None) is None:
        raise SourceError(f"{uri} holds nothing; check bucket and prefix")
    if labels is not None:
        yield Bucket(uri, config, labels)
        return
    with tempfile.TemporaryDirectory(prefix="chexradinet-tables-") as folder:
        _copy_tables(store, prefix, Path(folder))
        yield Bucket(uri, config, Path(folder))


@contextmanager
def open_archive(uri: str, config: StoreConfig, labels: Path | None) -> Iterator[Archive]:
    """Open an archive; it has no tables, unless `labels` has them.

    Raises:
        ConfigError: the URI has no valid address or dates.
    """
    parse_archive(uri, dates_needed=True)
    with tempfile.TemporaryDirectory(prefix="chexradinet-tables-") as folder:
        yield Archive(uri, config, labels or Path(folder))


def _copy_tables(store: ObjectStore, prefix: str, folder: Path) -> None:
    for info in store.list(prefix):
        name = info.key[len(prefix) :]
        if "/" not in name and name.casefold().endswith(_TABLE_SUFFIXES):
            store.get_file(info.key, folder / name)
