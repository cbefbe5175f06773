"""What the environment says of storage: endpoint, credentials, where unfinished work is kept."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from chexradinet.errors import StoreAccessError
from chexradinet.store.uri import join_uri

DEFAULT_REGION = "us-east-1"
"""Region of MinIO, SeaweedFS and most others that have none."""
CHECKPOINT_VARIABLE = "CHEXRADINET_CHECKPOINT_URI"
"""Names a folder (a path or `s3://bucket/folder`) for the state of unfinished work."""
_DOCUMENT = "see docs/operations.md, 'Storage'"


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """Where a store answers and who asks. Its repr holds no secret."""

    endpoint: str
    """`host` or `host:port`."""
    secure: bool
    """Whether it speaks TLS."""
    access_key: str = field(repr=False)
    """Name of the credentials."""
    secret_key: str = field(repr=False)
    """What requests are signed with."""
    session_token: str | None = field(repr=False, default=None)
    """Third part of temporary credentials."""
    region: str = DEFAULT_REGION
    """Region that requests are signed for."""
    ca_bundle: str | None = None
    """File of certificate authorities to trust; None for the system's."""


def access_from_environment(environ: Mapping[str, str] = os.environ) -> S3Access:
    """Read `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and the optional ones.

    Optional are `AWS_SESSION_TOKEN`, `AWS_REGION` and `AWS_CA_BUNDLE`. Nothing is cached: changed
    credentials count from the next call on.

    Raises:
        StoreAccessError: a needed variable is missing or cannot be used; no value is repeated.
    """
    endpoint, secure = _endpoint(_needed(environ, "AWS_ENDPOINT_URL"))
    return S3Access(
        endpoint=endpoint,
        secure=secure,
        access_key=_needed(environ, "AWS_ACCESS_KEY_ID"),
        secret_key=_needed(environ, "AWS_SECRET_ACCESS_KEY"),
        session_token=environ.get("AWS_SESSION_TOKEN", "").strip() or None,
        region=environ.get("AWS_REGION", "").strip() or DEFAULT_REGION,
        ca_bundle=_ca_bundle(environ),
    )


def checkpoint_folder(run: str, base: str | None = None) -> str:
    """Return the URI of the folder that holds the state of one run; empty where none is kept.

    Args:
        run: Name that equal runs share, such as a digest of all that decides the outcome.
        base: Folder for the state of all runs; None takes it from the environment, an empty one
            keeps none.
    """
    if base is None:
        base = os.environ.get(CHECKPOINT_VARIABLE, "").strip()
    return join_uri(base, run) if base else ""


def _needed(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise StoreAccessError(
            f"the environment variable {name} is not set, and s3:// and minio:// need it; "
            f"{_DOCUMENT}"
        )
    return value


def _endpoint(url: str) -> tuple[str, bool]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise StoreAccessError(
            "the environment variable AWS_ENDPOINT_URL is no http(s)://host[:port] without a path; "
            f"{_DOCUMENT}"
        )
    if parts.username is not None or parts.password is not None:
        raise StoreAccessError(
            "the environment variable AWS_ENDPOINT_URL holds credentials; put them in "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {_DOCUMENT}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return (f"{host}:{port}" if port else host), parts.scheme == "https"


def _ca_bundle(environ: Mapping[str, str]) -> str | None:
    path = environ.get("AWS_CA_BUNDLE", "").strip()
    if path and not Path(path).is_file():
        raise StoreAccessError(
            f"the environment variable AWS_CA_BUNDLE names {path}, which is no file; {_DOCUMENT}"
        )
    return path or None
