"""MinIO and every other store that speaks S3, as an object store.

Every write carries the content's checksum and a random writer's mark. If the answer to a write was
lost and the repeated one is refused, the mark tells whether the object there is this write.
"""

import builtins
import hashlib
import re
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from minio.datatypes import Object, Part
from minio.error import S3Error, ServerError
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from chexradinet.artifacts import sha256_of
from chexradinet.config import StoreConfig
from chexradinet.errors import (
    StoreConflictError,
    StoreError,
    StoreIntegrityError,
    StoreNotFoundError,
)
from chexradinet.store import minio_private
from chexradinet.store.protocol import (
    CHUNK_BYTES,
    Backoff,
    Expected,
    ObjectInfo,
    ObjectStore,
    file_errors,
    retrying,
    verified,
)
from chexradinet.store.s3_client import RAW_ERRORS, connect, is_transient, translated
from chexradinet.store.uri import S3Access, check_key

T = TypeVar("T")

SHA256_HEADER = "x-amz-meta-sha256"
"""Metadata that holds the content's SHA-256, in hex."""
_WRITER_HEADER = "x-amz-meta-writer"
_MOST_PARTS = 10_000
_PLAIN_MD5 = re.compile(r"^[0-9a-f]{32}$")
_ENCRYPTION = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-algorithm")


class S3Store(ObjectStore):
    """One bucket of a server that speaks S3. Only `_ask` repeats requests."""

    def __init__(self, bucket: str, access: S3Access, config: StoreConfig) -> None:
        self._name = bucket
        self._config = config
        self._client = connect(access, config)
        self._endpoint = access.endpoint

    def uri_of(self, key: str) -> str:
        """Return `s3://bucket/key`."""
        return f"s3://{self._name}/{key}"

    def stat(self, key: str) -> ObjectInfo:
        """Return what is known of an object; see `ObjectStore.stat`."""
        return self._info(self._head(key))

    def list(
        self, prefix: str = "", left_out: builtins.list[str] | None = None
    ) -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with a prefix; see `ObjectStore.list`.

        Empty objects whose key ends in `/`, which consoles make to show a folder, are left out.
        """
        backoff = self._backoff()
        last: str | None = None
        while True:
            try:
                for found in self._client.list_objects(
                    self._name, prefix=prefix, recursive=True, start_after=last
                ):
                    backoff.reset()
                    last = str(found.object_name)
                    if not last.endswith("/"):
                        yield self._info(found)
                return
            except RAW_ERRORS as error:
                if not (is_transient(error) and backoff.wait(error)):
                    raise self._translated(error, "list", prefix) from error

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield an object's bytes; a lost connection is resumed; see `ObjectStore.chunks`."""
        response = self._open(key, {})
        headers = {name.lower(): value for name, value in response.headers.items()}
        etag = headers.get("etag", "").strip('"')
        plain = _PLAIN_MD5.match(etag) and not any(name in headers for name in _ENCRYPTION)
        expected = Expected(
            size_bytes=int(headers.get("content-length", "0")),
            sha256=headers.get(SHA256_HEADER),
            md5=etag if plain else None,
        )
        with closing(self._body(key, response, expected.size_bytes, etag)) as body:
            yield from verified(body, expected, self.uri_of(key))

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """Write an object, replacing an older one; see `ObjectStore.put`."""
        condition = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        return self._write(key, data, condition)

    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not exist yet; see `ObjectStore.create`."""
        return self._write(key, data, {"If-None-Match": "*"})

    def put_file(self, key: str, path: Path) -> str:
        """Write a file of any size, a large one in parts; see `ObjectStore.put_file`.

        Raises:
            StoreIntegrityError: the file changed during the upload; no object appears.
        """
        check_key(key, self.uri_of(""))
        with file_errors("read", path):
            size = path.stat().st_size
            if size <= self._config.part_bytes:
                return self._write(key, path.read_bytes(), {})
            return self._write_parts(key, path, size, sha256_of(path))

    def delete(self, key: str) -> None:
        """Remove an object; see `ObjectStore.delete`."""
        self._ask("remove", key, lambda: self._client.remove_object(self._name, key))

    def _ask(self, verb: str, key: str, operation: Callable[[], T]) -> T:
        """Do a request that is safe to do twice; repeat it while that can help."""
        try:
            return retrying(operation, is_transient, self._backoff())
        except RAW_ERRORS as error:
            raise self._translated(error, verb, key) from error

    def _backoff(self) -> Backoff:
        return Backoff(self._config.retry_total_s, where=self._endpoint)

    def _translated(self, error: Exception, verb: str, key: str) -> StoreError:
        return translated(error, f"cannot {verb} {self.uri_of(key)} at {self._endpoint}")

    def _head(self, key: str) -> Object:
        def ask_head() -> Object:
            try:
                return self._client.stat_object(self._name, key)
            except (S3Error, ServerError) as error:
                if is_transient(error):
                    raise
                # The answer to HEAD has no body that tells why: GET's has.
                response = self._client.get_object(self._name, key)
                response.close()
                response.release_conn()
                raise

        return self._ask("read", key, ask_head)

    def _open(self, key: str, conditions: Mapping[str, str], offset: int = 0) -> BaseHTTPResponse:
        return self._ask(
            "read", key,
            lambda: self._client.get_object(
                self._name, key, offset=offset, request_headers=dict(conditions)
            ),
        )  # fmt: skip

    def _body(self, key: str, response: BaseHTTPResponse, size: int, etag: str) -> Generator[bytes]:
        """Yield the bytes of a response; if it breaks off, continue with the same object."""
        backoff = self._backoff()
        offset = 0
        while True:
            try:
                for chunk in response.stream(CHUNK_BYTES, decode_content=False):
                    offset += len(chunk)
                    backoff.reset()
                    yield chunk
                return
            except (HTTPError, OSError) as error:
                if offset >= size:
                    return
                if not backoff.wait(error):
                    raise self._translated(error, "read", key) from error
            finally:
                response.close()
                response.release_conn()
            response = self._open(key, {"If-Match": f'"{etag}"'}, offset)

    def _info(self, found: Object) -> ObjectInfo:
        key = str(found.object_name)
        if found.last_modified is None or found.size is None:
            raise StoreError(
                f"the store gave no size or no time for {self.uri_of(key)}; check that "
                "AWS_ENDPOINT_URL is an S3 service"
            )
        return ObjectInfo(
            key=key,
            uri=self.uri_of(key),
            size_bytes=found.size,
            etag=(found.etag or "").strip('"'),
            modified=found.last_modified,
            sha256=_metadata(found).get(SHA256_HEADER),
        )

    def _write(self, key: str, data: bytes, condition: Mapping[str, str]) -> str:
        check_key(key, self.uri_of(""))
        headers = _new_headers(hashlib.sha256(data).hexdigest())
        try:
            return self._ask(
                "write", key,
                lambda: minio_private.put_object(
                    self._client, self._name, key, data, {**headers, **condition}
                ),
            )  # fmt: skip
        except (StoreConflictError, StoreNotFoundError) as error:
            if not condition:
                raise
            if etag := self._etag_if_ours(key, headers):
                return etag
            if type(error) is StoreNotFoundError:
                raise StoreConflictError(str(error)) from error
            raise

    def _write_parts(self, key: str, path: Path, size: int, sha256: str) -> str:
        headers = _new_headers(sha256)
        at = (self._client, self._name, key)
        upload = self._ask("write", key, lambda: minio_private.create_upload(*at, headers))
        try:
            parts = self._upload_parts(key, path, size, upload, sha256)
            return self._complete(key, upload, parts, headers)
        except BaseException:
            # One attempt: if the store is gone, its own clean-up of unfinished uploads remains.
            with suppress(*RAW_ERRORS):
                minio_private.abort_upload(*at, upload)
            raise

    def _upload_parts(
        self, key: str, path: Path, size: int, upload: str, sha256: str
    ) -> Sequence[Part]:
        part_bytes = max(self._config.part_bytes, -(-size // _MOST_PARTS))
        digest = hashlib.sha256()
        parts: list[Part] = []
        with path.open("rb") as stream:
            while stream.tell() <= size and (data := stream.read(part_bytes)):
                digest.update(data)
                parts.append(self._upload_part(key, upload, len(parts) + 1, data))
        if digest.hexdigest() != sha256:
            raise StoreIntegrityError(
                f"{path} changed while it was being uploaded to {self.uri_of(key)}; upload it "
                "again when its writer is done"
            )
        return parts

    def _upload_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        at = (self._client, self._name, key, upload, number, data)
        return Part(number, self._ask("write", key, lambda: minio_private.upload_part(*at)))

    def _complete(
        self, key: str, upload: str, parts: Sequence[Part], headers: Mapping[str, str]
    ) -> str:
        def complete() -> str | None:
            try:
                return minio_private.complete_upload(
                    self._client, self._name, key, upload, list(parts)
                )
            except S3Error as error:
                if error.code == "NoSuchUpload":
                    return None  # an earlier attempt completed it, and its answer was lost
                raise

        etag = self._ask("write", key, complete) or self._etag_if_ours(key, headers)
        if etag is None:
            raise StoreIntegrityError(
                f"{self.uri_of(key)} was uploaded, but the store did not put it together; "
                "upload it again"
            )
        return etag

    def _etag_if_ours(self, key: str, headers: Mapping[str, str]) -> str | None:
        try:
            found = self._head(key)
        except StoreNotFoundError:
            return None
        ours = _metadata(found).get(_WRITER_HEADER) == headers[_WRITER_HEADER]
        return str(found.etag) if ours else None


def _metadata(found: Object) -> dict[str, str]:
    """Return an object's headers by lower-case name."""
    return {name.lower(): str(value) for name, value in (found.metadata or {}).items()}


def _new_headers(sha256: str) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        SHA256_HEADER: sha256,
        _WRITER_HEADER: secrets.token_hex(8),
    }
