"""Reading and writing what passes between stages: atomic, versioned, checked.

A directory artifact is written beside its place under a temporary name and renamed when complete,
so a killed stage leaves nothing that the next one would take for whole. An older one is moved aside
before and removed after, and put back if a kill came in between. A path that a user gives is
checked before any work: a stage writes to a new place, an empty directory, or over an older
artifact of its own kind. Every document and table carries its kind and schema version; a reader
refuses what it does not know, naming both versions.
"""

import csv
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from chexradinet.errors import ArtifactError, ConfigError, SchemaError

Record = TypeVar("Record")

TABLE_KEY = b"chexradinet"
"""Key of a Parquet file's metadata under which its kind and schema version are."""

_CHUNK_BYTES = 1 << 20
_FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


@dataclass(frozen=True, slots=True)
class Head:
    """The file by which a directory is known for an artifact of some kind."""

    name: str
    """Name of a JSON document or a Parquet table, at the directory's top."""
    kind: str
    """Kind, as the document or table states it."""

    def is_in(self, directory: Path) -> bool:
        """Tell whether a directory is an artifact of this kind, of whatever schema version."""
        return _kind_of(directory / self.name) == self.kind


def require_replaceable(target: Path, head: Head) -> None:
    """Refuse a target that holds anything but an older artifact of the same kind.

    Args:
        target: Directory that a stage is about to make. Its parents are made here.
        head: Head of the artifact that it will be.

    Raises:
        ConfigError: the target has no name, cannot be made, is a file, or is a directory with other
            content; artifacts are flat, so one with a folder in it is refused too.
    """
    if target.name in ("", ".."):
        raise ConfigError(f"{target} cannot be made; give the new directory a name of its own")
    try:
        _try_to_make(target)
        _settle(target)
        if os.path.lexists(target):
            _require_own(target, head)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be made: {error.strerror}; give another path, or change its rights"
        ) from error


def require_file(target: Path, suffix: str) -> None:
    """Refuse a file that cannot be written, or whose name says that it is of another kind.

    Raises:
        ConfigError: its name does not end in `suffix`, it is a directory, or cannot be made.
    """
    if target.suffix.casefold() != suffix:
        raise ConfigError(f"{target} does not end in {suffix}; give a file's name that does")
    try:
        _try_to_make(target)
        if target.is_dir():
            raise ConfigError(f"{target} is a directory; give the path of a file in it")
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror}; give another path, or change its rights"
        ) from error


def _try_to_make(target: Path) -> None:
    """Make and remove a directory beside the target, with a name as long as any used later."""
    trial = _temporary_sibling(target)
    trial.mkdir()
    trial.rmdir()


def _require_own(target: Path, head: Head) -> None:
    if not target.is_dir():
        what = "a link that leads to no directory" if target.is_symlink() else "a file"
        raise ConfigError(f"{target} is {what}; give the path of a directory to make")
    entries = list(target.iterdir())
    if not entries:
        return
    if not head.is_in(target):
        raise ConfigError(
            f"{target} is not empty and has no {head.name} of kind {head.kind!r}, so nothing in it "
            "is replaced; give another path, or empty it yourself"
        )
    folders = [entry.name for entry in entries if entry.is_dir()]
    if folders:
        raise ConfigError(
            f"{target} holds folders beside {head.name}, which this program did not make; move "
            f"them ({', '.join(sorted(folders)[:3])}) away, or give another path"
        )


def _kind_of(path: Path) -> str | None:
    document: Any
    try:
        if path.suffix == ".parquet":
            document = _head_of(pq.read_schema(path))
        else:
            document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, pa.ArrowException):
        return None
    kind = document.get("kind") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) else None


def _temporary_sibling(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.partial-{secrets.token_hex(6)}")


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing_directory(target: Path, head: Head | None) -> Iterator[Path]:
    """Yield a temporary directory that becomes `target` when the block ends without an error.

    On an error the temporary directory is removed and `target` stays as it was; after a kill it
    stays behind under a name that no reader looks at.

    Args:
        target: Directory to make.
        head: Head of the artifact that it becomes; only an older one of its kind is replaced. None
            replaces whatever is there: for places that no user names.

    Raises:
        ConfigError: `target` holds something else, or cannot be made.
    """
    if head is not None:
        require_replaceable(target, head)
    temporary = _temporary_sibling(target)
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, target, head)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(complete: Path, target: Path, head: Head | None) -> None:
    """Rename a complete directory to `target` on its file system, in place of an older one.

    Args:
        complete: Directory to rename.
        target: Its new name.
        head: As `writing_directory` takes it.

    Raises:
        ConfigError: `target` holds something else by now.
    """
    for path in complete.rglob("*"):
        sync(path)
    if head is not None:
        require_replaceable(target, head)
    _settle(target)
    older = _aside(target)
    if os.path.lexists(target):
        target.rename(older)
    complete.replace(target)
    sync(target.parent)
    _remove(older)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.before-chexradinet")


def _settle(target: Path) -> None:
    """End a replacement that a kill broke off: the older artifact is put back, or removed."""
    older = _aside(target)
    if os.path.lexists(older) and not os.path.lexists(target):
        older.rename(target)
    _remove(older)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes the file `target` when the block ends well."""
    temporary = _temporary_sibling(target)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises:
        ArtifactError: there is no such file.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is missing; the artifact is incomplete, make it again"
        ) from error
    return digest.hexdigest()


def check_schema(found: Mapping[str, Any], kind: str, version: int, where: Path) -> None:
    """Refuse a document of another kind or schema version.

    Raises:
        SchemaError: it names the kind and version that were found and that were needed.
    """
    given = (found.get("kind"), found.get("schema"))
    if given != (kind, version):
        raise SchemaError(
            f"{where} is {given[0]!r} of schema {given[1]!r}, but this release reads {kind!r} of "
            f"schema {version}; use the release that wrote it, or make the artifact again"
        )


def write_document(path: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a JSON document with its kind and schema version, atomically.

    Raises:
        ValueError: a number in it is not finite.
    """
    document = {"schema": version, "kind": kind, **content}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with writing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON document of one kind and schema version.

    Raises:
        ArtifactError: it is missing, not a JSON object, or of another kind or version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; a {kind!r} artifact is needed") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}); make the artifact again") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} does not hold a JSON object; make the artifact again")
    check_schema(document, kind, version, path)
    return document


def record_of(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """Return the record that a document holds under the names of its fields.

    Raises:
        ValueError: a field is missing, or of another type.
    """
    record: Record = _reader(kind).validate_python(document)  # type: ignore[arg-type]
    return record


@cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def write_table(
    path: Path,
    frame: pd.DataFrame,
    kind: str,
    version: int,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a Parquet table with its kind, schema version and provenance, atomically."""
    write_table_in_parts(path, [frame], kind, version, provenance)


def write_table_in_parts(
    path: Path,
    frames: Iterable[pd.DataFrame],
    kind: str,
    version: int,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Do what `write_table` does with rows that come part by part, at least one part."""
    head = _head(kind, version, provenance or {})
    with writing_file(path) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **head})
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
                stack.enter_context(writer)
            writer.write_table(table)


def read_table(
    path: Path, kind: str, version: int, columns: Sequence[str] | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a Parquet table of one kind and schema version; return it and its provenance.

    `columns` is what to read of it; None reads all.

    Raises:
        ArtifactError: it is missing, not a Parquet file, or of another kind or version.
    """
    with _parquet_file(path, kind, version) as file:
        table = file.read(columns=None if columns is None else list(columns))
        provenance: dict[str, Any] = _head_of(file.schema_arrow)["provenance"]
    return table.to_pandas(), provenance


def table_shape(path: Path, kind: str, version: int) -> tuple[int, list[str]]:
    """Return the number of rows and the columns of a table, without reading it.

    Raises:
        ArtifactError: as `read_table`.
    """
    with _parquet_file(path, kind, version) as file:
        return file.metadata.num_rows, file.schema_arrow.names


@contextmanager
def _parquet_file(path: Path, kind: str, version: int) -> Iterator[pq.ParquetFile]:
    """Open a Parquet table of one kind and schema version."""
    try:
        with pq.ParquetFile(path) as file:
            check_schema(_head_of(file.schema_arrow), kind, version, path)
            yield file
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; a {kind!r} table is needed") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"{path} is not a whole Parquet file ({error}); make it again"
        ) from error


def table_bytes(table: pa.Table, kind: str, version: int) -> bytes:
    """Return a Parquet file with its kind and schema version; equal tables give equal bytes."""
    described = table.replace_schema_metadata(_head(kind, version, {}))
    sink = pa.BufferOutputStream()
    pq.write_table(described, sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def table_of(data: bytes, kind: str, version: int, where: str) -> pa.Table:
    """Read what `table_bytes` wrote.

    Raises:
        ArtifactError: the bytes are not a Parquet file, or of another kind or version.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{where} is not a whole Parquet file ({error}); restore it") from error
    check_schema(_head_of(table.schema), kind, version, Path(where))
    return table


def _head(kind: str, version: int, provenance: Mapping[str, Any]) -> dict[bytes, bytes]:
    head = {"schema": version, "kind": kind, "provenance": dict(provenance)}
    return {TABLE_KEY: json.dumps(head, sort_keys=True).encode()}


def _head_of(schema: pa.Schema) -> dict[str, Any]:
    head: dict[str, Any] = json.loads((schema.metadata or {}).get(TABLE_KEY, b"{}"))
    return head


class CsvWriter:
    """Writes a CSV table of which a spreadsheet runs no cell: every CSV of the project is its.

    Text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay
    numbers, also those that are given as text.

    Source: OWASP, CSV Injection.
    """

    def __init__(self, stream: TextIO) -> None:
        self._writer = csv.writer(stream, lineterminator="\n")

    def writerow(self, cells: Iterable[object]) -> None:
        """Write one row."""
        self._writer.writerow([_harmless(cell) for cell in cells])

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        """Write rows one by one."""
        for row in rows:
            self.writerow(row)


def _harmless(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r", " ")  # which `csv` does not quote, and a reader takes for a new row
    runs = cell.lstrip(" ").startswith(_FORMULA_STARTS) and not _is_number(cell)
    return f"'{text}" if runs else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
