"""The way to a DICOMweb archive: credentials, connection, errors. An optional package makes it."""

import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import requests  # type: ignore[import-untyped]
from requests.exceptions import (  # type: ignore[import-untyped]
    ChunkedEncodingError,
    ConnectionError,
    HTTPError,
    SSLError,
    Timeout,
)

from chexradinet.config import StoreConfig
from chexradinet.errors import (
    StoreAccessError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

RAW_ERRORS = (requests.RequestException, OSError, ValueError)
"""Everything the client raises of its own."""

_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_DOCUMENT = "see docs/operations.md, 'PACS'"


def client_for(
    url: str, config: StoreConfig, environ: Mapping[str, str] = os.environ
) -> "DICOMwebClient":
    """Return a client with the credentials of the environment; connections are kept between calls.

    Raises:
        StoreAccessError: the credentials are incomplete or the file of certificates is missing.
        StoreError: the client package is not installed.
    """
    token, user = (
        environ.get("DICOMWEB_TOKEN", "").strip(),
        environ.get("DICOMWEB_USER", "").strip(),
    )
    password = environ.get("DICOMWEB_PASSWORD", "")
    if bool(user) != bool(password):
        missing = "DICOMWEB_PASSWORD" if user else "DICOMWEB_USER"
        raise StoreAccessError(f"the environment variable {missing} is not set; {_DOCUMENT}")
    if token and user:
        raise StoreAccessError(
            f"DICOMWEB_TOKEN and DICOMWEB_USER are both set; unset one of them; {_DOCUMENT}"
        )
    bundle = environ.get("DICOMWEB_CA_BUNDLE", "").strip()
    if bundle and not Path(bundle).is_file():
        raise StoreAccessError(f"DICOMWEB_CA_BUNDLE names {bundle}, which is no file; {_DOCUMENT}")
    return _opened(url, (token, user, password), bundle, config, os.getpid())


@lru_cache(maxsize=8)
def _opened(
    url: str, credentials: tuple[str, str, str], bundle: str, config: StoreConfig, process: int
) -> "DICOMwebClient":
    try:
        from dicomweb_client import DICOMwebClient
    except ImportError as error:
        raise StoreError(
            "dicomweb:// needs the package dicomweb-client; install chexradinet[dicomweb]"
        ) from error
    # It logs the UIDs it asks for, which identify patients to who has the archive.
    logging.getLogger("dicomweb_client").setLevel(logging.WARNING)
    token, user, password = credentials
    session = requests.Session()
    # Else credentials of ~/.netrc would replace the token.
    session.trust_env = False
    session.verify = bundle or True
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    elif user:
        session.auth = (user, password)
    client = DICOMwebClient(
        url,
        session=session,
        permissive_uid=True,
        timeout=(config.connect_timeout_s, config.read_timeout_s),
    )
    client.set_http_retry_params(retry=False)
    return client


def is_transient(error: Exception) -> bool:
    """Tell whether a request that failed so is worth another attempt."""
    if isinstance(error, HTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    lost = isinstance(error, ConnectionError | Timeout | ChunkedEncodingError)
    return lost and not isinstance(error, SSLError)


def translated(error: Exception, start: str) -> StoreError:
    """Return the store's error for one of `RAW_ERRORS`.

    Args:
        error: What the client raised, after the last attempt.
        start: How the message begins; names the host.
    """
    if isinstance(error, HTTPError):
        return _from_status(error.response.status_code, start)
    if isinstance(error, SSLError):
        return StoreUnavailableError(
            f"{start}: no trusted TLS connection; name the authority's certificate in "
            "DICOMWEB_CA_BUNDLE, or see dicomweb+http:// in docs/datasets.md for one without TLS"
        )
    if is_transient(error):
        return StoreUnavailableError(
            f"{start}: no answer, also after repeating ({type(error).__name__}); check host, "
            "port and network, then run again"
        )
    return StoreUnavailableError(
        f"{start}: something answers there, but not in DICOMweb "
        f"({type(error).__name__}); check the path"
    )


def _from_status(status: int, start: str) -> StoreError:
    if status == 401:
        return StoreAccessError(
            f"{start}: the credentials are missing, wrong or expired (401); set DICOMWEB_TOKEN, or "
            f"DICOMWEB_USER and DICOMWEB_PASSWORD; {_DOCUMENT}"
        )
    if status == 403:
        return StoreAccessError(f"{start}: these credentials may not do this (403); {_DOCUMENT}")
    if status in (404, 410):
        return StoreNotFoundError(f"{start}: nothing is there ({status}); check the path")
    if status in _TRANSIENT_STATUS:
        return StoreUnavailableError(
            f"{start}: the archive fails or is overloaded, also after repeating ({status}); run "
            "again later"
        )
    return StoreError(f"{start}: the archive refused with status {status}; its log says more")
