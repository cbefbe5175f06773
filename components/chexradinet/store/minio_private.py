"""The private parts of the minio client that exactly-once writing hangs on, and no others.

Its public methods take no `If-Match` or `If-None-Match` on a write, and no single parts. A
presigned request cannot replace them: the metadata that tells a repeated write from another's must
be signed, and a presigned URL signs none. `tests/unit/store/test_minio_private.py` says when a
release moves one; the version in `pyproject.toml` is bounded for that reason.
"""

from collections.abc import Mapping

from minio import Minio
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioAdminException


def put_object(
    client: Minio, bucket: str, key: str, data: bytes, headers: Mapping[str, str]
) -> str:
    """Write a whole object with these headers; return its ETag."""
    # A copy: the client adds the date and the signature to what it is given.
    return str(client._put_object(bucket, key, data, dict(headers)).etag)


def create_upload(client: Minio, bucket: str, key: str, headers: Mapping[str, str]) -> str:
    """Begin an upload in parts; return its id."""
    return str(client._create_multipart_upload(bucket, key, dict(headers)))


def upload_part(client: Minio, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
    """Upload a part, counted from 1; return its ETag."""
    return str(client._upload_part(bucket, key, data, {}, upload, number))


def complete_upload(client: Minio, bucket: str, key: str, upload: str, parts: list[Part]) -> str:
    """Put the parts together; return the object's ETag."""
    return str(client._complete_multipart_upload(bucket, key, upload, parts).etag)


def abort_upload(client: Minio, bucket: str, key: str, upload: str) -> None:
    """Drop an upload and its parts."""
    client._abort_multipart_upload(bucket, key, upload)


def status_of(error: InvalidResponseError | MinioAdminException) -> int:
    """Return the HTTP status of an answer that could not be read."""
    return int(error._code)
