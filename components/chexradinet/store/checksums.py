"""What was read is what was written: length and checksum of a stream of bytes."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chexradinet.errors import StoreIntegrityError

CHUNK_BYTES = 1 << 20
"""Most bytes read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is recorded of an object's content."""

    size_bytes: int
    """Length."""
    sha256: str | None = None
    """Checksum by our own writer, in hex, where it wrote the object."""
    md5: str | None = None
    """Checksum that the ETag is known to be, in hex."""


def verified(chunks: Iterable[bytes], expected: Expected, uri: str) -> Iterator[bytes]:
    """Yield the same chunks, and compare the whole when they end.

    Raises:
        StoreIntegrityError: length or checksum differ; the message names both values.
    """
    sha256 = hashlib.sha256() if expected.sha256 else None
    md5 = hashlib.md5(usedforsecurity=False) if expected.md5 and not sha256 else None
    size = 0
    for chunk in chunks:
        size += len(chunk)
        for digest in (sha256, md5):
            if digest is not None:
                digest.update(chunk)
        yield chunk
    if size != expected.size_bytes:
        _refuse(uri, f"{size} bytes", f"{expected.size_bytes} bytes")
    if sha256 is not None and sha256.hexdigest() != expected.sha256:
        _refuse(uri, f"SHA-256 {sha256.hexdigest()}", str(expected.sha256))
    if md5 is not None and md5.hexdigest() != expected.md5:
        _refuse(uri, f"MD5 {md5.hexdigest()}", str(expected.md5))


def _refuse(uri: str, found: str, recorded: str) -> None:
    raise StoreIntegrityError(
        f"{uri} was read with {found}, but {recorded} was recorded when it was written; it was "
        "damaged or altered: restore it or make it again"
    )


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, in pieces of at most 1 MiB."""
    with path.open("rb") as stream:
        yield from stream_chunks(stream)


def stream_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield what is left of an open file, in pieces of at most 1 MiB."""
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


class ChunkStream(io.RawIOBase):
    """A binary file over an iterator of bytes; closing it closes the iterator."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer with the next bytes; return their number, 0 at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Release what the iterator holds."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
        super().close()
