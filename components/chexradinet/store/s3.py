"""MinIO and every other store that speaks S3, as an object store."""

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from minio.datatypes import Object
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreError
from chexradinet.store.checksums import CHUNK_BYTES, Expected, verified
from chexradinet.store.environment import S3Access
from chexradinet.store.file_errors import file_errors
from chexradinet.store.protocol import ObjectInfo, ObjectStore
from chexradinet.store.s3_bucket import Bucket
from chexradinet.store.s3_errors import RAW_ERRORS, is_transient
from chexradinet.store.s3_write import SHA256_HEADER, head, metadata_of, write_bytes, write_file
from chexradinet.store.uri import check_key

_PLAIN_MD5 = re.compile(r"^[0-9a-f]{32}$")
_ENCRYPTION = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-algorithm")


class S3Store(ObjectStore):
    """One bucket of a server that speaks S3."""

    def __init__(self, bucket: str, access: S3Access, config: StoreConfig) -> None:
        self._bucket = Bucket(bucket, access, config)

    def uri_of(self, key: str) -> str:
        """Return `s3://bucket/key`."""
        return self._bucket.uri_of(key)

    def stat(self, key: str) -> ObjectInfo:
        """Return what is known of an object; see `ObjectStore.stat`."""
        return self._info(head(self._bucket, key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with a prefix; see `ObjectStore.list`.

        Empty objects whose key ends in `/`, which consoles make to show a folder, are left out.
        """
        backoff = self._bucket.backoff()
        last: str | None = None
        while True:
            try:
                for found in self._bucket.client.list_objects(
                    self._bucket.name, prefix=prefix, recursive=True, start_after=last
                ):
                    backoff.reset()
                    last = str(found.object_name)
                    if not last.endswith("/"):
                        yield self._info(found)
                return
            except RAW_ERRORS as error:
                if not (is_transient(error) and backoff.wait(error)):
                    raise self._bucket.error(error, "list", prefix) from error

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
        check_key(key, self.uri_of(""))
        condition = {"If-Match": f'"{if_match}"'} if if_match is not None else {}
        return write_bytes(self._bucket, key, data, condition)

    def create(self, key: str, data: bytes) -> str:
        """Write an object that must not exist yet; see `ObjectStore.create`."""
        check_key(key, self.uri_of(""))
        return write_bytes(self._bucket, key, data, {"If-None-Match": "*"})

    def put_file(self, key: str, path: Path) -> str:
        """Write a file of any size, a large one in parts; see `ObjectStore.put_file`."""
        check_key(key, self.uri_of(""))
        with file_errors("read", path):
            if path.stat().st_size <= self._bucket.config.part_bytes:
                return write_bytes(self._bucket, key, path.read_bytes(), {})
        return write_file(self._bucket, key, path)

    def delete(self, key: str) -> None:
        """Remove an object; see `ObjectStore.delete`."""
        name = self._bucket.name
        self._bucket.ask("remove", key, lambda: self._bucket.client.remove_object(name, key))

    def _open(self, key: str, conditions: Mapping[str, str], offset: int = 0) -> BaseHTTPResponse:
        return self._bucket.ask(
            "read", key,
            lambda: self._bucket.client.get_object(
                self._bucket.name, key, offset=offset, request_headers=dict(conditions)
            ),
        )  # fmt: skip

    def _body(self, key: str, response: BaseHTTPResponse, size: int, etag: str) -> Generator[bytes]:
        """Yield the bytes of a response; where it breaks off, go on with the same object."""
        backoff = self._bucket.backoff()
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
                    raise self._bucket.error(error, "read", key) from error
            finally:
                response.close()
                response.release_conn()
            response = self._open(key, {"If-Match": f'"{etag}"'}, offset)

    def _info(self, found: Object) -> ObjectInfo:
        key = str(found.object_name)
        if found.last_modified is None or found.size is None:
            raise StoreError(
                f"the store told no size or no time of {self.uri_of(key)}; check that "
                "AWS_ENDPOINT_URL is an S3 service"
            )
        return ObjectInfo(
            key=key,
            uri=self.uri_of(key),
            size_bytes=found.size,
            etag=(found.etag or "").strip('"'),
            modified=found.last_modified,
            sha256=metadata_of(found).get(SHA256_HEADER),
        )
