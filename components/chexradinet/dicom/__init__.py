"""Reading radiographs: DICOM files, and archives over DICOMweb, whose addresses are read here.

`dicomweb://host[:port]/path?study_date=20260101-20260131` speaks TLS, except to this machine
itself; `dicomweb+https://` always does, `dicomweb+http://` never, and it goes to another machine
only if `CHEXRADINET_ALLOW_HTTP_PACS` is 1. `?last_days=2` stands for today, the two days before and
one after, for time zones.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import SplitResult, parse_qs, urlsplit

from chexradinet.errors import ConfigError

HTTP_VARIABLE = "CHEXRADINET_ALLOW_HTTP_PACS"
"""Environment variable that, set to 1, allows plain HTTP to other machines."""

UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)*\Z")
"""What counts as a UID (DICOM PS3.5 chapter 9): anything else may be a formula, path or name."""

MAX_FAILURES_IN_A_ROW = 10
"""An archive that answers, but fails on so many files or studies in a row, is down."""

_FORM = "dicomweb://host[:port]/path?study_date=YYYYMMDD-YYYYMMDD"
_DATES = re.compile(r"^(\d{8})?(-)?(\d{8})?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Where an archive answers, and what to look for."""

    uri: str
    """The address as given, without query and without a slash at its end."""
    url: str
    """The address over HTTP, without a slash at its end."""
    host: str
    """Host and port, for messages."""
    study_date: str
    """A DICOM date or range of dates; empty if none is needed."""


def is_dicomweb(uri: str) -> bool:
    """Tell whether a URI names an archive rather than files or object storage."""
    scheme, mark, _ = uri.partition("://")
    return bool(mark) and scheme.casefold().startswith("dicomweb")


def parse_archive(uri: str, *, dates_needed: bool) -> Archive:
    """Read the URI of an archive.

    Raises:
        ConfigError: the scheme, host or dates are missing or wrong, or plain HTTP to another
            machine is not allowed; no password is repeated.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the archive's address cannot be read; it must be {_FORM}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the archive's address holds credentials; put them in DICOMWEB_USER and "
            "DICOMWEB_PASSWORD, or in DICOMWEB_TOKEN"
        )
    if not parts.hostname:
        raise ConfigError(f"archive {uri!r} names no host; it must be {_FORM}")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host = f"{name}:{port}" if port else name
    path = parts.path.rstrip("/")
    return Archive(
        uri=f"{parts.scheme}://{host}{path}",
        url=f"{_protocol(parts, uri)}://{host}{path}",
        host=host,
        study_date=_study_date(parts, uri) if dates_needed else "",
    )


def _protocol(parts: SplitResult, uri: str) -> str:
    if parts.scheme == "dicomweb":
        return "http" if _is_loopback(str(parts.hostname)) else "https"
    if parts.scheme == "dicomweb+http" and not _is_loopback(str(parts.hostname)):
        _require_permission()
    if parts.scheme in ("dicomweb+http", "dicomweb+https"):
        return parts.scheme.partition("+")[2]
    raise ConfigError(f"archive {uri!r} has scheme {parts.scheme!r}; it must be {_FORM}")


def _require_permission() -> None:
    if os.environ.get(HTTP_VARIABLE, "").strip() != "1":
        raise ConfigError(
            "dicomweb+http:// would send X-rays and credentials unencrypted to another machine; "
            f"use dicomweb://, or set {HTTP_VARIABLE}=1 if the network is protected otherwise"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _study_date(parts: SplitResult, uri: str) -> str:
    query = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(set(query) - {"study_date", "last_days"})
    if unknown or len(query) > 1:
        given = f"unknown {unknown}" if unknown else "both study_date and last_days"
        raise ConfigError(f"archive {uri!r} has {given}; it must be {_FORM}")
    if "last_days" in query:
        return _last_days(query["last_days"][-1], uri)
    value = query.get("study_date", [""])[-1]
    match = _DATES.match(value)
    days = [day for day in (match[1], match[3]) if day] if match else []
    if not days or (len(days) == 2 and "-" not in value) or not all(map(_is_day, days)):
        raise ConfigError(
            f"archive {uri!r} has study_date {value!r}; it must be a day, first-last, first- "
            "or -last, as YYYYMMDD"
        )
    if days[0] > days[-1]:
        raise ConfigError(f"archive {uri!r} has a study_date that ends before it begins")
    return value


def _last_days(text: str, uri: str) -> str:
    if not re.fullmatch(r"\d{1,4}", text):
        raise ConfigError(f"archive {uri!r} has last_days {text!r}; it must be a number of days")
    today = datetime.now(UTC)
    first, last = today - timedelta(days=int(text)), today + timedelta(days=1)
    return f"{first:%Y%m%d}-{last:%Y%m%d}"


def _is_day(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return True
