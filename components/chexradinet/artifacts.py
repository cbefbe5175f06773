"""Reading and writing what passes between stages: atomic, versioned, checked.

A directory artifact is written beside its place under a temporary name and renamed when complete,
so a killed stage leaves nothing that the next one would take for whole. Every document and table
carries its kind and schema version; a reader refuses what it does not know, naming both versions.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from chexradinet.errors import ArtifactError, SchemaError
from chexradinet.replacing import TABLE_KEY, Head, require_replaceable

_CHUNK_BYTES = 1 << 20


def _temporary_sibling(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.partial-{secrets.token_hex(6)}")


def _sync(path: Path) -> None:
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
        head: Of the artifact that it becomes; only an older one of its kind is replaced. None
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
        complete: The directory.
        target: Where it goes.
        head: As `writing_directory` takes it.

    Raises:
        ConfigError: `target` holds something else by now.
    """
    for path in complete.rglob("*"):
        _sync(path)
    if head is not None:
        require_replaceable(target, head)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    elif target.exists():
        target.unlink()
    complete.replace(target)
    _sync(target.parent)


@contextmanager
def writing_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes the file `target` when the block ends well."""
    temporary = _temporary_sibling(target)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
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
        ArtifactError: it is missing, no JSON object, or of another kind or version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; needed is a {kind!r} artifact") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}); make the artifact again") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} holds no JSON object; make the artifact again")
    check_schema(document, kind, version, path)
    return document


def write_table(
    path: Path,
    frame: pd.DataFrame,
    kind: str,
    version: int,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a Parquet table with its kind, schema version and provenance, atomically."""
    head = {"schema": version, "kind": kind, "provenance": dict(provenance or {})}
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), TABLE_KEY: json.dumps(head, sort_keys=True).encode()}
    )
    with writing_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, kind: str, version: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a Parquet table of one kind and schema version; return it and its provenance.

    Raises:
        ArtifactError: it is missing, no Parquet file, or of another kind or version.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; needed is a {kind!r} table") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is no whole Parquet file ({error}); make it again") from error
    head = json.loads((table.schema.metadata or {}).get(TABLE_KEY, b"{}"))
    check_schema(head, kind, version, path)
    provenance: dict[str, Any] = head["provenance"]
    return table.to_pandas(), provenance


def table_bytes(table: pa.Table, kind: str, version: int) -> bytes:
    """Return a Parquet file with its kind and schema version; equal tables give equal bytes."""
    head = {"schema": version, "kind": kind, "provenance": {}}
    described = table.replace_schema_metadata({TABLE_KEY: json.dumps(head, sort_keys=True)})
    sink = pa.BufferOutputStream()
    pq.write_table(described, sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def table_of(data: bytes, kind: str, version: int, where: str) -> pa.Table:
    """Read what `table_bytes` wrote.

    Raises:
        ArtifactError: the bytes are no Parquet file, or of another kind or version.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{where} is no whole Parquet file ({error}); restore it") from error
    head = json.loads((table.schema.metadata or {}).get(TABLE_KEY, b"{}"))
    check_schema(head, kind, version, Path(where))
    return table
