"""A bucket and the way to it: the client, and how often a request is repeated."""

from collections.abc import Callable
from typing import TypeVar

import urllib3
from minio import Minio

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreError
from chexradinet.store.environment import S3Access
from chexradinet.store.retry import Backoff, retrying
from chexradinet.store.s3_errors import RAW_ERRORS, is_transient, translated

T = TypeVar("T")


class Bucket:
    """One bucket. Only `ask` repeats requests: the client's own retries are off."""

    def __init__(self, name: str, access: S3Access, config: StoreConfig) -> None:
        self.name = name
        self.config = config
        self.client = _client(access, config)
        self._endpoint = access.endpoint

    def uri_of(self, key: str) -> str:
        """Return `s3://bucket/key`."""
        return f"s3://{self.name}/{key}"

    def ask(self, verb: str, key: str, operation: Callable[[], T]) -> T:
        """Do a request, repeat it where that can help, and return what it returns.

        Args:
            verb: What it does with the key, for the message.
            key: Name in the bucket.
            operation: The request; must be safe to do twice.

        Raises:
            StoreError: the subclass that fits the last failure.
        """
        try:
            return retrying(operation, is_transient, self.backoff())
        except RAW_ERRORS as error:
            raise self.error(error, verb, key) from error

    def backoff(self) -> Backoff:
        """Return the waits of one operation."""
        return Backoff(self.config.retry_total_s)

    def error(self, error: Exception, verb: str, key: str) -> StoreError:
        """Return the store's error for one of the client's."""
        return translated(error, f"cannot {verb} {self.uri_of(key)}", self._endpoint)


def _client(access: S3Access, config: StoreConfig) -> Minio:
    timeout = urllib3.Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s)
    pool = urllib3.PoolManager(
        timeout=timeout,
        maxsize=16,
        cert_reqs="CERT_REQUIRED",
        ca_certs=access.ca_bundle,
        retries=False,
    )
    return Minio(
        access.endpoint,
        access_key=access.access_key,
        secret_key=access.secret_key,
        session_token=access.session_token,
        secure=access.secure,
        region=access.region,
        http_client=pool,
    )
