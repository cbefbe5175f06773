"""Names of places in storage, and what the environment says of the way to them.

A place is a path, `file://`, `s3://bucket/key` or `minio://bucket/key`. Keys in `s3://` and
`minio://` are taken as they stand, without percent decoding, as the tools of S3 write them;
`file://` is percent decoded (RFC 8089).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from chexradinet.errors import ConfigError, StoreAccessError

DEFAULT_REGION = "us-east-1"
"""Region of MinIO, SeaweedFS and most others that have none."""
CHECKPOINT_VARIABLE = "CHEXRADINET_CHECKPOINT_URI"
"""Names a folder (a path or `s3://bucket/folder`) for the state of unfinished work."""

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_FORMS = "a path, file:///path, s3://bucket/key or minio://bucket/key"
_DOCUMENT = "see docs/operations.md, 'Storage'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a URI points: in a bucket, or in the file system."""

    bucket: str | None
    """Name of the bucket; None for the file system."""
    key: str
    """Key in the bucket, may be empty; or an absolute path with `..` resolved, not its links."""

    @property
    def path(self) -> Path | None:
        """Path in the file system, None for a place in a bucket."""
        return Path(self.key) if self.bucket is None else None


def parse_uri(uri: str) -> Location:
    """Read a URI or a path.

    Args:
        uri: One of the forms above; a relative path starts at the working directory.

    Raises:
        ConfigError: it is empty, of another scheme, or without a valid bucket.
    """
    if not uri.strip() or "\0" in uri:
        raise ConfigError(f"storage location {uri!r} is empty or not text; use {_FORMS}")
    match = _SCHEME.match(uri)
    if match is None:
        return Location(bucket=None, key=_absolute(uri))
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return _file_location(uri, rest)
    if scheme not in ("s3", "minio"):
        raise ConfigError(f"storage location {uri!r} has scheme {scheme!r}; use {_FORMS}")
    bucket, _, key = rest.partition("/")
    if not _BUCKET.match(bucket):
        raise ConfigError(
            f"storage location {uri!r} names bucket {bucket!r}; a bucket has 3 to 63 lower-case "
            f"letters, digits, dots or hyphens, as in {scheme}://bucket/key"
        )
    return Location(bucket=bucket, key=key)


def _file_location(uri: str, rest: str) -> Location:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(
            f"storage location {uri!r} names host {host!r}; file:// reads this machine's files "
            "only: write file:///path with three slashes"
        )
    return Location(bucket=None, key=_absolute("/" + unquote(path)))


def _absolute(path: str) -> str:
    # Not Path.resolve: a link stays the name that the user gave.
    return "/" + os.path.abspath(Path(path).expanduser()).lstrip("/")  # noqa: PTH100


def join_uri(uri: str, *parts: str) -> str:
    """Append names to a URI or path, with one slash between them."""
    return "/".join([uri.rstrip("/") or "", *(part.strip("/") for part in parts)])


def check_key(key: str, where: str) -> None:
    """Refuse a key that a directory could not hold, or that would leave it.

    Raises:
        ConfigError: it is empty, absolute, over 1,024 bytes, or has an empty part, `.` or `..`.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise ConfigError(
            f"key {key!r} in {where} is not a plain relative name; use names joined by single "
            "slashes, without '.', '..' or an empty one"
        )
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"key {key!r} in {where} is not valid Unicode; rename it") from error
    if length > 1024:
        raise ConfigError(f"a key in {where} has {length} bytes; object stores allow 1,024")


def checkpoint_folder(run: str, base: str | None = None) -> str:
    """Return the URI of the folder that holds the state of one run; empty if none is kept.

    Args:
        run: Name that equal runs share, such as a digest of all that decides the outcome.
        base: Folder for the state of all runs; None takes it from the environment, an empty one
            keeps none.
    """
    if base is None:
        base = os.environ.get(CHECKPOINT_VARIABLE, "").strip()
    return join_uri(base, run) if base else ""


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """Where a store answers and who asks. Its repr holds no secret."""

    endpoint: str
    """`host` or `host:port`."""
    secure: bool
    """Whether it speaks TLS."""
    access_key: str = field(repr=False, default="")
    """Name of the credentials; empty if a file gives them."""
    secret_key: str = field(repr=False, default="")
    """Key that requests are signed with."""
    session_token: str | None = field(repr=False, default=None)
    """Third part of temporary credentials."""
    token_file: str = ""
    """File of a web identity token, to be exchanged for credentials."""
    role_arn: str = ""
    """Role to assume with it; MinIO needs none."""
    sts_url: str = ""
    """Security token service that exchanges it."""
    credentials_file: str = ""
    """Shared credentials file, as the tools of AWS write it."""
    profile: str = ""
    """Section of that file; empty for `default`."""
    region: str = DEFAULT_REGION
    """Region that requests are signed for."""
    ca_bundle: str | None = None
    """File of certificate authorities to trust; None for the system's."""


def access_from_environment(environ: Mapping[str, str] = os.environ) -> S3Access:
    """Read `AWS_ENDPOINT_URL`, where credentials come from, `AWS_REGION` and `AWS_CA_BUNDLE`.

    Credentials are `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and maybe `AWS_SESSION_TOKEN`, else
    `AWS_WEB_IDENTITY_TOKEN_FILE`, else `AWS_SHARED_CREDENTIALS_FILE`. Nothing is cached: changed
    variables count from the next call on.

    Raises:
        StoreAccessError: a needed variable is missing or cannot be used; no value is repeated.
    """
    given = {name: environ.get(name, "").strip() for name in environ if name.startswith("AWS_")}
    region = given.get("AWS_REGION") or DEFAULT_REGION
    files = given.get("AWS_WEB_IDENTITY_TOKEN_FILE") or given.get("AWS_SHARED_CREDENTIALS_FILE")
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    from_file = bool(files) and not any(given.get(name) for name in keys)
    for name in ("AWS_ENDPOINT_URL", *(() if from_file else keys)):
        if not given.get(name):
            raise StoreAccessError(
                f"the environment variable {name} is not set, and s3:// and minio:// need it; "
                f"{_DOCUMENT}"
            )
    endpoint, secure = _endpoint(given["AWS_ENDPOINT_URL"])
    bundle = given.get("AWS_CA_BUNDLE")
    if bundle and not Path(bundle).is_file():
        raise StoreAccessError(
            f"the environment variable AWS_CA_BUNDLE names {bundle}, which is not a file; "
            f"{_DOCUMENT}"
        )
    return S3Access(
        endpoint=endpoint,
        secure=secure,
        access_key=given.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=given.get("AWS_SECRET_ACCESS_KEY", ""),
        session_token=given.get("AWS_SESSION_TOKEN") or None,
        token_file=given.get("AWS_WEB_IDENTITY_TOKEN_FILE", ""),
        role_arn=given.get("AWS_ROLE_ARN", ""),
        sts_url=given.get("AWS_ENDPOINT_URL_STS") or _sts_url(given["AWS_ENDPOINT_URL"], region),
        credentials_file=given.get("AWS_SHARED_CREDENTIALS_FILE", ""),
        profile=given.get("AWS_PROFILE", ""),
        region=region,
        ca_bundle=bundle or None,
    )


def _sts_url(endpoint_url: str, region: str) -> str:
    """Return the security token service of a store: MinIO is its own, AWS has one per region."""
    host = urlsplit(endpoint_url).hostname or ""
    return (
        f"https://sts.{region}.amazonaws.com" if host.endswith(".amazonaws.com") else endpoint_url
    )


def _endpoint(url: str) -> tuple[str, bool]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise StoreAccessError(
            "the environment variable AWS_ENDPOINT_URL is not http(s)://host[:port] without a "
            f"path; {_DOCUMENT}"
        )
    if parts.username is not None or parts.password is not None:
        raise StoreAccessError(
            "the environment variable AWS_ENDPOINT_URL holds credentials; put them in "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {_DOCUMENT}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return (f"{host}:{port}" if port else host), parts.scheme == "https"
