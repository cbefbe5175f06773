"""Where X-rays come from: what can be listed and opened, and the one place that knows how.

`ingest` needs three things of a source: a local folder with its tables, the names of its image
files, and the bytes of one of them. Another kind of source is another class with these.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chexradinet.errors import RejectedImageError, SourceError
from chexradinet.records import RejectReason

DICOM_SUFFIXES = (".dcm", ".dicom")
"""Ends of names of DICOM files."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM_SUFFIXES)
"""Files that count as X-rays; others are tables, licences and the like."""


class Source(Protocol):
    """A set of image files with label tables; picklable, because workers open the files."""

    @property
    def tables(self) -> Path:
        """Local folder with the label tables at its top."""
        ...

    def files(self) -> Iterator[str]:
        """Yield the image files in a fixed order, relative to the source, with forward slashes."""
        ...

    def read(self, file: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            RejectedImageError: this file cannot be read; the others may.
            SourceError: nothing can be read any more.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of the file system and all below it, symbolic links followed."""

    path: Path

    @property
    def tables(self) -> Path:
        """The folder itself."""
        return self.path

    def files(self) -> Iterator[str]:
        """Yield the image files below the folder; hidden ones and link cycles are left out.

        Raises:
            SourceError: a folder below cannot be listed.
        """
        yield from _walk(self.path, "", frozenset())

    def read(self, file: str) -> bytes:
        """Return the bytes of a file below the folder."""
        try:
            return (self.path / file).read_bytes()
        except FileNotFoundError as error:
            raise RejectedImageError(RejectReason.MISSING, "there is no such file") from error
        except OSError as error:
            detail = error.strerror or type(error).__name__
            raise RejectedImageError(RejectReason.UNREADABLE, detail) from error


def open_source(source: str) -> Folder:
    """Open a source by what the user wrote.

    Raises:
        SourceError: it is missing, not a folder, or not allowed to be read.
    """
    path = Path(source)
    if not path.exists():
        raise SourceError(f"{source} does not exist; give a folder with images and a label table")
    if not path.is_dir():
        raise SourceError(f"{source} is a file; give the folder that holds images and label table")
    return Folder(path)


def _walk(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder that this one is in
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be listed: {error.strerror}; check its rights"
        ) from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", above | {real})
        elif entry.name.casefold().endswith(IMAGE_SUFFIXES):
            yield prefix + entry.name
