"""What an S3 server or the way to it said, in the store's words.

Sources: the S3 API reference's list of error codes, and the codes MinIO adds to it. No message of
the server is repeated: some carry key names or the text that was to be signed.
"""

from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, SSLError

from chexradinet.errors import (
    StoreAccessError,
    StoreBucketError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)

RAW_ERRORS = (MinioException, HTTPError, ParseError, OSError, ValueError)
"""Everything the client raises of its own."""

_TRANSIENT_CODES = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "TooManyRequests",
    "XMinioServerNotInitialized",
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_KEY = "the access key is not known there; check AWS_ACCESS_KEY_ID"
_SIGNATURE = "the secret does not fit the access key; check AWS_SECRET_ACCESS_KEY"
_EXPIRED = "the credentials have expired; renew them and run again"
_SESSION = (
    "the session token is not valid; check AWS_SESSION_TOKEN, or unset it for lasting credentials"
)
_REGION = "the bucket is in another region; check AWS_REGION"
_DENIED = (
    "these credentials may not do this; grant it to them in the store, or use others "
    "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
)
_ACCESS_CODES = {
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidAccessKeyId": _KEY,
    "InvalidToken": _SESSION,
    "InvalidTokenId": _SESSION,
    "PermanentRedirect": _REGION,
    "Redirect": _REGION,
    "RequestTimeTooSkewed": "this machine's clock differs from the store's; set the clock",
    "SignatureDoesNotMatch": _SIGNATURE,
    "TokenRefreshRequired": _EXPIRED,
}
_OTHER_CODES: dict[str, tuple[type[StoreError], str]] = {
    "BadDigest": (StoreUnavailableError, "bytes were damaged on their way; run again"),
    "KeyTooLongError": (StoreError, "the key is longer than the store allows; shorten the names"),
    "MethodNotAllowed": (StoreError, "the store does not support this operation"),
    "NoSuchBucket": (StoreBucketError, "there is no such bucket; create it or mend the URI"),
    "NoSuchKey": (StoreNotFoundError, "there is no such object; check the URI"),
    "NotImplemented": (StoreError, "the store does not support this operation"),
    "PreconditionFailed": (
        StoreConflictError,
        "it was created or changed meanwhile; read it again",
    ),
    "QuotaExceeded": (StoreFullError, "the bucket's quota is used up; raise it or free space"),
    "XMinioAdminBucketQuotaExceeded": (StoreFullError, "the bucket's quota is used up; raise it"),
    "XMinioStorageFull": (StoreFullError, "the store's disks are full; free space there"),
}
_NOT_S3 = (
    "something answers there, but no S3 service; mend host, port or scheme in AWS_ENDPOINT_URL"
)


def is_transient(error: Exception) -> bool:
    """Tell whether a request that failed so is worth another attempt."""
    if isinstance(error, S3Error):
        status = error.response.status
        known = error.code in _ACCESS_CODES or error.code in _OTHER_CODES
        return error.code in _TRANSIENT_CODES or (status in _TRANSIENT_STATUS and not known)
    if isinstance(error, ServerError):
        return error.status_code in _TRANSIENT_STATUS
    if isinstance(error, InvalidResponseError):
        return _status_of(error) in _TRANSIENT_STATUS
    reason = _reason(error)
    if isinstance(reason, SSLError | LocationValueError):
        return False
    return isinstance(reason, HTTPError | ConnectionError | TimeoutError)


def translated(error: Exception, what: str, endpoint: str) -> StoreError:
    """Return the store's error for one of `RAW_ERRORS`.

    Args:
        error: What the client raised, after the last attempt.
        what: The operation for the message, such as `cannot read s3://bucket/key`.
        endpoint: Host and port that were asked.
    """
    start = f"{what} at {endpoint}"
    if isinstance(error, S3Error):
        return _from_code(error, start)
    if is_transient(error):
        return _unreachable(error, start)
    if isinstance(_reason(error), SSLError):
        return StoreUnavailableError(
            f"{start}: no trusted TLS connection; check https in AWS_ENDPOINT_URL, and name the "
            "authority's certificate in AWS_CA_BUNDLE"
        )
    return StoreUnavailableError(f"{start}: {_NOT_S3}")


def _from_code(error: S3Error, start: str) -> StoreError:
    code = error.code or "unknown"
    if code in _ACCESS_CODES:
        return StoreAccessError(f"{start}: {_ACCESS_CODES[code]} ({code})")
    if code in _OTHER_CODES:
        kind, text = _OTHER_CODES[code]
        return kind(f"{start}: {text} ({code})")
    if is_transient(error):
        return _unreachable(error, start)
    status = error.response.status
    if status in (401, 403):
        return StoreAccessError(f"{start}: {_DENIED} ({code})")
    return StoreError(f"{start}: the store refused with {code}; its log says more")


def _unreachable(error: Exception, start: str) -> StoreUnavailableError:
    said = error.code if isinstance(error, S3Error) else type(_reason(error)).__name__
    return StoreUnavailableError(
        f"{start}: the store does not answer as it should, also after repeating ({said}); check "
        "AWS_ENDPOINT_URL, the network and the server, then run again"
    )


def _reason(error: Exception) -> Exception:
    if isinstance(error, MaxRetryError) and error.reason is not None:
        return error.reason
    return error


def _status_of(error: InvalidResponseError) -> int:
    return int(error._code)
