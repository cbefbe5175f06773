"""Writing to a bucket: whole objects, under a condition or not, and large files in parts.

Every write carries the content's checksum and a random writer's mark. When the answer to a write
was lost and the repeated one is refused, the mark tells whether the object there is this write.

The client has no public methods that take the conditional headers of PutObject, nor for single
parts; the ones with a leading underscore are used. The pinned major version and the tests against a
server guard them.
"""

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from minio.datatypes import Object, Part
from minio.error import S3Error, ServerError

from chexradinet.errors import StoreConflictError, StoreIntegrityError, StoreNotFoundError
from chexradinet.store.checksums import file_chunks
from chexradinet.store.file_errors import file_errors
from chexradinet.store.s3_bucket import Bucket
from chexradinet.store.s3_errors import RAW_ERRORS, is_transient

SHA256_HEADER = "x-amz-meta-sha256"
"""Metadata that holds the content's SHA-256, in hex."""
_WRITER_HEADER = "x-amz-meta-writer"
_MOST_PARTS = 10_000


def head(bucket: Bucket, key: str) -> Object:
    """Return what the server tells of an object.

    Raises:
        StoreNotFoundError: there is no such object or bucket.
    """

    def ask_head() -> Object:
        try:
            return bucket.client.stat_object(bucket.name, key)
        except (S3Error, ServerError) as error:
            if is_transient(error):
                raise
            # The answer to HEAD has no body that tells why: GET's has.
            response = bucket.client.get_object(bucket.name, key)
            response.close()
            response.release_conn()
            raise

    return bucket.ask("read", key, ask_head)


def metadata_of(found: Object) -> dict[str, str]:
    """Return an object's headers by lower-case name."""
    return {name.lower(): str(value) for name, value in (found.metadata or {}).items()}


def write_bytes(bucket: Bucket, key: str, data: bytes, condition: Mapping[str, str]) -> str:
    """Write a whole object; return its ETag.

    Args:
        bucket: Where to.
        key: Name in the bucket.
        data: The whole content.
        condition: `If-Match` or `If-None-Match` headers; empty for none.

    Raises:
        StoreConflictError: the condition does not hold.
    """
    headers = _headers(hashlib.sha256(data).hexdigest())
    try:
        # A copy each time: the client adds the date and the signature to what it is given.
        result = bucket.ask(
            "write", key,
            lambda: bucket.client._put_object(bucket.name, key, data, {**headers, **condition}),
        )  # fmt: skip
    except (StoreConflictError, StoreNotFoundError) as error:
        if not condition:
            raise
        if etag := _etag_if_ours(bucket, key, headers[_WRITER_HEADER]):
            return etag
        if type(error) is StoreNotFoundError:
            raise StoreConflictError(str(error)) from error
        raise
    return str(result.etag)


def write_file(bucket: Bucket, key: str, path: Path) -> str:
    """Write a file in parts, holding one part in memory; return the object's ETag.

    Raises:
        StoreIntegrityError: the file changed during the upload; no object appears.
    """
    digest = hashlib.sha256()
    with file_errors("read", path):
        for chunk in file_chunks(path):
            digest.update(chunk)
    headers = _headers(digest.hexdigest())
    upload = bucket.ask(
        "write", key,
        lambda: bucket.client._create_multipart_upload(bucket.name, key, dict(headers)),
    )  # fmt: skip
    try:
        parts = _upload_parts(bucket, key, path, upload, digest.hexdigest())
        return _complete(bucket, key, upload, parts, headers[_WRITER_HEADER])
    except BaseException:
        # One attempt: where the store is gone, its own clean-up of unfinished uploads remains.
        with suppress(*RAW_ERRORS):
            bucket.client._abort_multipart_upload(bucket.name, key, upload)
        raise


def _upload_parts(bucket: Bucket, key: str, path: Path, upload: str, sha256: str) -> list[Part]:
    size = path.stat().st_size
    part_bytes = max(bucket.config.part_bytes, -(-size // _MOST_PARTS))
    digest = hashlib.sha256()
    parts: list[Part] = []
    with file_errors("read", path), path.open("rb") as stream:
        while stream.tell() <= size and (data := stream.read(part_bytes)):
            digest.update(data)
            parts.append(_upload_part(bucket, key, data, upload, len(parts) + 1))
    if digest.hexdigest() != sha256:
        raise StoreIntegrityError(
            f"{path} changed while it was being uploaded to {bucket.uri_of(key)}; upload it again "
            "when its writer is done"
        )
    return parts


def _upload_part(bucket: Bucket, key: str, data: bytes, upload: str, number: int) -> Part:
    etag = bucket.ask(
        "write", key,
        lambda: bucket.client._upload_part(bucket.name, key, data, {}, upload, number),
    )  # fmt: skip
    return Part(number, etag)


def _complete(bucket: Bucket, key: str, upload: str, parts: list[Part], writer: str) -> str:
    def complete() -> str | None:
        try:
            done = bucket.client._complete_multipart_upload(bucket.name, key, upload, parts)
        except S3Error as error:
            if error.code == "NoSuchUpload":
                return None  # an earlier attempt completed it, and its answer was lost
            raise
        return done.etag

    etag = bucket.ask("write", key, complete) or _etag_if_ours(bucket, key, writer)
    if etag is None:
        raise StoreIntegrityError(
            f"{bucket.uri_of(key)} was uploaded, but the store did not put it together; "
            "upload it again"
        )
    return etag


def _etag_if_ours(bucket: Bucket, key: str, writer: str) -> str | None:
    try:
        found = head(bucket, key)
    except StoreNotFoundError:
        return None
    return str(found.etag) if metadata_of(found).get(_WRITER_HEADER) == writer else None


def _headers(sha256: str) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        SHA256_HEADER: sha256,
        _WRITER_HEADER: secrets.token_hex(8),
    }
