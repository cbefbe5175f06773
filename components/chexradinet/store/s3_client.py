"""Client of a store that speaks S3: connections, credentials, and the errors it may meet.

Credentials are keys of the environment, else `AWS_WEB_IDENTITY_TOKEN_FILE` (a token that the
cluster projects into the pod and a security token service exchanges for keys), else
`AWS_SHARED_CREDENTIALS_FILE`. Both files are read again when needed, so a run outlives its first
credentials.

No message of the server is repeated: some carry names of keys or the text that was to be signed.
Sources: the S3 API reference's list of error codes, and the codes that MinIO adds to it.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    Provider,
    StaticProvider,
    WebIdentityProvider,
)
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, SSLError

from chexradinet.config import StoreConfig
from chexradinet.errors import (
    StoreAccessError,
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from chexradinet.store import minio_private
from chexradinet.store.uri import S3Access

RAW_ERRORS = (MinioException, HTTPError, ParseError, OSError, ValueError)
"""Everything the client raises of its own."""

_PASSING = re.compile(r"HTTP status code (408|429|5\d\d)$")
_TRANSIENT_CODES = {
    "ConditionalRequestConflict", "InternalError", "OperationAborted", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling",
    "TooManyRequests", "XMinioServerNotInitialized",
}  # fmt: skip
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_DENIED = (
    "these credentials may not do this; grant it to them in the store, or use others "
    "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
)
_EXPIRED = "the credentials have expired; renew them and run again"
_SESSION = (
    "the session token is not valid; check AWS_SESSION_TOKEN, or unset it for lasting credentials"
)
_REGION = "the bucket is in another region; check AWS_REGION"
_UNSUPPORTED = "the store does not support this operation"
_ACCESS_CODES = {
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidAccessKeyId": "the access key is not known there; check AWS_ACCESS_KEY_ID",
    "InvalidToken": _SESSION,
    "InvalidTokenId": _SESSION,
    "PermanentRedirect": _REGION,
    "Redirect": _REGION,
    "RequestTimeTooSkewed": "this machine's clock differs from the store's; set the clock",
    "SignatureDoesNotMatch": (
        "the secret does not fit the access key; check AWS_SECRET_ACCESS_KEY"
    ),
    "TemporaryRedirect": _REGION,
    "TokenRefreshRequired": _EXPIRED,
}
_CODES: dict[str, tuple[type[StoreError], str]] = {
    **{code: (StoreAccessError, text) for code, text in _ACCESS_CODES.items()},
    "BadDigest": (StoreUnavailableError, "bytes were damaged on their way; run again"),
    "KeyTooLongError": (StoreError, "the key is longer than the store allows; shorten the names"),
    "MethodNotAllowed": (StoreError, _UNSUPPORTED),
    "NoSuchBucket": (StoreBucketError, "there is no such bucket; create it or correct the URI"),
    "NoSuchKey": (StoreNotFoundError, "there is no such object; check the URI"),
    "NotImplemented": (StoreError, _UNSUPPORTED),
    "PreconditionFailed": (
        StoreConflictError,
        "it was created or changed meanwhile; read it again",
    ),
    "QuotaExceeded": (StoreFullError, "the bucket's quota is used up; raise it or free space"),
    "XMinioAdminBucketQuotaExceeded": (StoreFullError, "the bucket's quota is used up; raise it"),
    "XMinioStorageFull": (StoreFullError, "the store's disks are full; free space there"),
}


def open_pool(access: S3Access, config: StoreConfig) -> urllib3.PoolManager:
    """Return connections that repeat no request and follow no redirect: a body is an X-ray."""
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=config.connect_timeout_s, read=config.read_timeout_s),
        maxsize=16,
        cert_reqs="CERT_REQUIRED",
        ca_certs=access.ca_bundle,
        retries=False,
    )


def connect(access: S3Access, config: StoreConfig) -> Minio:
    """Return a client."""
    pool = open_pool(access, config)
    return Minio(
        access.endpoint,
        credentials=provider_of(access, pool),
        secure=access.secure,
        region=access.region,
        http_client=pool,
    )


class TokenServiceError(HTTPError):
    """The security token service cannot be reached, or not now; another attempt may help."""


class _Refreshed(Provider):
    """Credentials that are read again; errors repeat no token, which the client's do."""

    def __init__(self, source: Provider, failed: str) -> None:
        self._source = source
        self._failed = failed

    def retrieve(self) -> Credentials:
        """Return valid credentials.

        Raises:
            StoreAccessError: there are none; the message says where they were looked for.
            TokenServiceError: the service does not answer.
        """
        try:
            return self._source.retrieve()
        except HTTPError as error:
            raise TokenServiceError(type(error).__name__) from None
        except (MinioException, OSError, ValueError) as error:
            if _PASSING.search(str(error)):
                raise TokenServiceError("the service is busy") from None
            raise StoreAccessError(f"{self._failed}; see docs/operations.md, 'Storage'") from None


def provider_of(access: S3Access, pool: PoolManager) -> Provider:
    """Return what gives each request its credentials.

    Args:
        access: Where credentials come from.
        pool: Connections to the security token service.
    """
    if access.access_key:
        return StaticProvider(access.access_key, access.secret_key, access.session_token)
    if access.token_file:
        exchange = WebIdentityProvider(
            jwt_provider_func=lambda: {"access_token": Path(access.token_file).read_text().strip()},
            sts_endpoint=access.sts_url,
            role_arn=access.role_arn or None,
            role_session_name="chexradinet",
            http_client=pool,
        )
        return _Refreshed(
            exchange,
            f"the security token service {access.sts_url} gives no credentials for the token in "
            f"{access.token_file} (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN); check the token, "
            "the role and whom it trusts",
        )
    profile = access.profile or "default"
    return _Refreshed(
        AWSConfigProvider(access.credentials_file, profile),
        f"{access.credentials_file} (AWS_SHARED_CREDENTIALS_FILE) has no keys in profile "
        f"{profile!r}; add aws_access_key_id and aws_secret_access_key to it",
    )


def is_transient(error: Exception) -> bool:
    """Tell whether a request that failed so is worth another attempt."""
    if isinstance(error, S3Error):
        passing = error.response.status in _TRANSIENT_STATUS and error.code not in _CODES
        return error.code in _TRANSIENT_CODES or passing
    if isinstance(error, ServerError):
        return error.status_code in _TRANSIENT_STATUS
    if isinstance(error, InvalidResponseError):
        return minio_private.status_of(error) in _TRANSIENT_STATUS
    reason = _reason(error)
    if isinstance(reason, SSLError | LocationValueError):
        return False
    return isinstance(reason, HTTPError | ConnectionError | TimeoutError)


def translated(error: Exception, start: str) -> StoreError:
    """Return the store's error for one of `RAW_ERRORS`.

    Args:
        error: Last error of the client.
        start: Start of the message, such as `cannot read s3://bucket/key at minio:9000`.
    """
    if isinstance(error, S3Error) and error.code in _CODES:
        kind, text = _CODES[error.code]
        return kind(f"{start}: {text} ({error.code})")
    if is_transient(error):
        said = error.code if isinstance(error, S3Error) else type(_reason(error)).__name__
        return StoreUnavailableError(
            f"{start}: the store does not answer as it should, also after repeating ({said}); "
            "check AWS_ENDPOINT_URL, the network and the server, then run again"
        )
    if isinstance(error, S3Error):
        if error.response.status in (401, 403):
            return StoreAccessError(f"{start}: {_DENIED} ({error.code or 'unknown'})")
        said = error.code or "unknown"
        return StoreError(f"{start}: the store refused with {said}; its log says more")
    if isinstance(_reason(error), SSLError):
        return StoreUnavailableError(
            f"{start}: no trusted TLS connection; check https in AWS_ENDPOINT_URL, and name the "
            "authority's certificate in AWS_CA_BUNDLE"
        )
    return StoreUnavailableError(
        f"{start}: something answers there that is not an S3 service; correct host, port or "
        "scheme in AWS_ENDPOINT_URL"
    )


def _reason(error: Exception) -> Exception:
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return error.reason
    return error
