"""Names of places in storage: a path, `file://`, `s3://bucket/key` or `minio://bucket/key`.

Keys in `s3://` and `minio://` are taken as they stand, without percent decoding, as the tools of S3
write them; `file://` is percent decoded (RFC 8089).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from chexradinet.errors import ConfigError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
_FORMS = "a path, file:///path, s3://bucket/key or minio://bucket/key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a URI points: in a bucket, or in the file system."""

    bucket: str | None
    """Name of the bucket; None for the file system."""
    key: str
    """Key in the bucket, may be empty; or an absolute path with `..` resolved, not its links."""


def parse_uri(uri: str) -> Location:
    """Read a URI or a path.

    Args:
        uri: One of the forms above; a relative path starts at the working directory.

    Raises:
        ConfigError: it is empty, of another scheme, or without a valid bucket.
    """
    if not uri.strip() or "\0" in uri:
        raise ConfigError(f"storage location {uri!r} is empty or no text; needed is {_FORMS}")
    match = _SCHEME.match(uri)
    if match is None:
        return Location(bucket=None, key=_absolute(uri))
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return _file_location(uri, rest)
    if scheme not in ("s3", "minio"):
        raise ConfigError(f"storage location {uri!r} has scheme {scheme!r}; needed is {_FORMS}")
    bucket, _, key = rest.partition("/")
    if not _BUCKET.match(bucket):
        raise ConfigError(
            f"storage location {uri!r} names bucket {bucket!r}; needed are 3 to 63 lower-case "
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
    parts: list[str] = []
    for part in Path(path).expanduser().absolute().parts[1:]:
        if part == "..":
            del parts[-1:]
        else:
            parts.append(part)
    return "/" + "/".join(parts)


def join_uri(uri: str, *parts: str) -> str:
    """Append names to a URI or path, with one slash between them."""
    return "/".join([uri.rstrip("/") or "", *(part.strip("/") for part in parts)])


def check_key(key: str, where: str) -> None:
    """Refuse a key that a directory could not hold, or that would leave it.

    Raises:
        ConfigError: it is empty, absolute, over 1,024 bytes, or has an empty part, `.` or `..`.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key:
        raise ConfigError(
            f"key {key!r} in {where} is no plain relative name; needed are names joined by single "
            "slashes, without '.', '..' or an empty one"
        )
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"key {key!r} in {where} is no valid Unicode; rename it") from error
    if length > 1024:
        raise ConfigError(f"a key in {where} has {length} bytes; object stores allow 1,024")
