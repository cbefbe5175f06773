"""X-rays from a PACS: QIDO-RS finds them by study date, WADO-RS fetches them (DICOM PS3.18).

Addresses are those of `dicom`. Credentials come from the environment: a bearer token in
`DICOMWEB_TOKEN`, or `DICOMWEB_USER` and `DICOMWEB_PASSWORD`; `DICOMWEB_CA_BUNDLE` names authorities
to trust. No redirect is followed: it would send X-rays and credentials somewhere else.

Search goes from studies to series to instances, as archives support it best; searches over all
instances at once are slow or missing in many.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import requests  # type: ignore[import-untyped]
from requests.exceptions import ChunkedEncodingError, HTTPError, SSLError  # type: ignore[import-untyped]

from chexradinet.config import StoreConfig
from chexradinet.dicom import MAX_FAILURES_IN_A_ROW, UID, Archive, parse_archive
from chexradinet.dicom.file import MAX_FILE_BYTES, too_large
from chexradinet.errors import (
    RejectedImageError,
    StoreAccessError,
    StoreError,
    StoreIntegrityError,
    StoreItemError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from chexradinet.store import DEFAULT
from chexradinet.store.protocol import Backoff, retrying

MODALITIES = ("CR", "DX", "DR", "RG")
"""DICOM modalities of projection radiographs; DR and RG are of old devices. Left out are RF, mostly
films of many frames, and OT and SC, mostly captures of something else in studies of CT."""
PAGE_SIZE = 500
"""Most results a search asks for at once; an archive may give fewer."""
RAW_ERRORS = (requests.RequestException, OSError, RecursionError, ValueError)
"""Everything that a request raises of its own."""

_STUDY_UID, _SERIES_UID, _SOP_UID, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_ACCEPT_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_ACCEPT_JSON = "application/dicom+json"
_MAGIC = slice(128, 132)
_NO_PAGES = {400, 404, 416, 501}
"""What an archive that does not know `offset` may say to it."""
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_OF_ONE_FILE_STATUS = {400, 406, 409, 415, 422, 501}
_REFUSED_STATUS = {401, 403}
_MAX_INTERNAL_ERRORS = 3
"""How often an archive may answer 500 for one file before the file is given up."""
_CHUNK_BYTES = 1024 * 1024
_PART_HEAD = re.compile(rb"(?:(?:[!-9;-~]+:|[ \t])[^\r\n]*\r?\n)*\r?\n")
_DOCUMENT = "see docs/operations.md, 'PACS'"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRef:
    """One X-ray in an archive.

    Its UIDs, also in the URI, identify a patient to who has the archive: keep them out of logs.
    """

    uri: str
    """Name that `fetch` takes."""
    study_uid: str
    """Study Instance UID (0020,000D)."""
    sop_uid: str
    """SOP Instance UID (0008,0018)."""
    modality: str
    """Modality (0008,0060), one of `MODALITIES`."""


def list_instances(
    uri: str, config: StoreConfig = DEFAULT, left_out: list[str] | None = None
) -> Iterator[InstanceRef]:
    """Yield the radiographs of an archive whose study is of the given dates, each once.

    Args:
        uri: The archive with `?study_date=`: a day, `first-last`, `first-` or `-last`, as YYYYMMDD;
            or with `?last_days=`.
        config: How often and how long to try.
        left_out: Collects the UIDs of studies that the archive fails on; without it they are
            errors.

    Raises:
        ConfigError: the URI has no valid address or no valid dates.
        StoreAccessError: the archive does not let us in, or redirects.
        StoreNotFoundError: there is no DICOMweb service at this address.
        StoreUnavailableError: it cannot be reached, also after retries.
        StoreItemError: it fails on a study, or on several in a row.
    """
    archive = parse_archive(uri, dates_needed=True)
    search = _Search(archive, config)
    listed: set[str] = set()
    in_a_row = 0
    for modality in MODALITIES:
        of_study = {"StudyDate": archive.study_date, "ModalitiesInStudy": modality}
        for study in search("studies", _STUDY_UID, of_study):
            if study[_STUDY_UID] not in listed:
                listed.add(study[_STUDY_UID])
                try:
                    yield from _instances(search, study[_STUDY_UID])
                    in_a_row = 0
                except StoreItemError:
                    in_a_row += 1
                    if left_out is None or in_a_row == MAX_FAILURES_IN_A_ROW:
                        raise
                    left_out.append(study[_STUDY_UID])


def fetch(uri: str, config: StoreConfig = DEFAULT) -> bytes:
    """Return a radiograph as a DICOM file, in the transfer syntax it is stored in.

    Args:
        uri: URI of an X-ray as a listing gave it; its last part is the SOP Instance UID.
        config: How often and how long to try.

    Raises:
        StoreNotFoundError: it is no longer there.
        StoreIntegrityError: something else came, or the archive cannot give this one.
        StoreItemError: the archive fails on this one, also after retries, but answers a search.
        StoreAccessError: the archive does not let us in, or redirects.
        StoreUnavailableError: it cannot be reached, also after retries.
        RejectedImageError: `too_large`.
    """
    archive = parse_archive(uri, dates_needed=False)
    sop_uid = uri.rpartition("/")[2]
    try:
        kind, body = _get(archive, archive.url, _ACCEPT_DICOM, {}, config, _patient())
    except HTTPError as error:
        status = error.response.status_code
        if status in _TRANSIENT_STATUS | _REFUSED_STATUS:
            raise _item_error(archive, config) from error
        if status in _OF_ONE_FILE_STATUS:
            raise StoreIntegrityError(
                f"the archive at {archive.host} cannot give a radiograph "
                f"({status}); its log says more"
            ) from error
        raise translated(error, f"cannot fetch a radiograph at {archive.host}") from error
    except RAW_ERRORS as error:
        if is_transient(error):
            raise _item_error(archive, config) from error
        raise translated(error, f"cannot fetch a radiograph at {archive.host}") from error
    parts = [body] if body[_MAGIC] == b"DICM" else parts_of(body, kind)
    if len(parts) != 1 or sop_uid.encode() not in parts[0]:
        raise StoreIntegrityError(
            f"the archive at {archive.host} answered with {len(parts)} files, or with another "
            "than the one that was asked for; run again, and ask its administrator if it persists"
        )
    return parts[0]


class _Search:
    """Searches of one archive, all pages of each."""

    def __init__(self, archive: Archive, config: StoreConfig) -> None:
        self.archive = archive
        self._config = config

    def __call__(
        self, path: str, tag: str, filters: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, str]]:
        """Yield each result once: its values by tag, of those that are asked for here.

        An archive may give fewer than `PAGE_SIZE` at once, and not always as many. The last page is
        the one without anything new: archives that do not know `offset` repeat the first.
        """
        seen: set[str] = set()
        offset = 0
        while True:
            paged = {"offset": str(offset)} if offset else {}
            found = self._page(path, {**(filters or {}), **paged})
            offset += len(found)
            named = self._named(found, tag)
            new = {values[tag]: values for values in named if values[tag] not in seen}
            yield from new.values()
            seen.update(new)
            if not new:
                return

    def _page(self, path: str, query: Mapping[str, str]) -> list[Any]:
        start = f"cannot search for {path.rpartition('/')[2]} at {self.archive.host}"
        url = f"{self.archive.url}/{path}"
        asked = {**query, "limit": str(PAGE_SIZE)}
        try:
            patience = _patient() if "/" in path else is_transient
            _, body = _get(self.archive, url, _ACCEPT_JSON, asked, self._config, patience)
            found = json.loads(body) if body.strip() else []
        except HTTPError as error:
            status = error.response.status_code
            gone = "/" in path and status in (404, 410)
            if gone or ("offset" in asked and status in _NO_PAGES):
                return []
            raise self._of(path, translated(error, start)) from error
        except RAW_ERRORS as error:
            raise self._of(path, translated(error, start)) from error
        except RejectedImageError as error:
            raise self._of(path, _no_answer(start)) from error
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self._of(path, _no_answer(start))
        return found

    def _of(self, path: str, error: StoreError) -> StoreError:
        """Return an error, or that the archive fails on this study alone."""
        in_study = "/" in path
        return _item_error(self.archive, self._config, str(error)) if in_study else error

    def _named(self, found: list[Any], tag: str) -> list[dict[str, str]]:
        """Return the results that have a valid UID; the others are counted in the log.

        If none has one, the answer is not DICOMweb.
        """
        items = [{name: _value(item, name) for name in (tag, _MODALITY)} for item in found]
        named = [values for values in items if UID.match(values[tag])]
        if items and not named:
            error = _no_answer(f"cannot use what the archive at {self.archive.host} found")
            raise error if tag == _STUDY_UID else StoreItemError(str(error))
        if len(named) < len(items):
            _logger.warning("%d search results without a valid UID", len(items) - len(named))
        return named


def _instances(search: _Search, study_uid: str) -> Iterator[InstanceRef]:
    # Chosen here and not by the archive: not all of them heed a filter on the series.
    for series in search(f"studies/{study_uid}/series", _SERIES_UID):
        if series[_MODALITY] not in MODALITIES:
            continue
        path = f"studies/{study_uid}/series/{series[_SERIES_UID]}/instances"
        for instance in search(path, _SOP_UID):
            yield InstanceRef(
                uri=f"{search.archive.uri}/{path}/{instance[_SOP_UID]}",
                study_uid=study_uid,
                sop_uid=instance[_SOP_UID],
                modality=series[_MODALITY],
            )


def _value(item: Mapping[str, Any], tag: str) -> str:
    """Return the first value of an attribute in DICOM JSON; empty if it has none."""
    try:
        return str(item[tag]["Value"][0] or "").strip(" \0")
    except (KeyError, IndexError, TypeError):
        return ""


def _no_answer(start: str) -> StoreError:
    return StoreError(
        f"{start}: the answer is not a list of results with UIDs; it does not follow DICOM PS3.18: "
        "check the path, or ask the archive's administrator"
    )


def _item_error(archive: Archive, config: StoreConfig, said: str = "") -> StoreError:
    """Tell an archive that fails on one file or study from one that fails, by a search."""
    start = f"cannot fetch a radiograph at {archive.host}"
    url = f"{archive.url.partition('/studies/')[0]}/studies"
    once = config.changed(retry_total_s=0.0)
    try:
        _get(archive, url, _ACCEPT_JSON, {"limit": "1"}, once, is_transient)
    except RAW_ERRORS as error:
        if is_transient(error) or not isinstance(error, HTTPError):
            return translated(error, start)
        if error.response.status_code in _REFUSED_STATUS:
            return translated(error, start)
    except RejectedImageError:
        pass  # a long answer is one
    return StoreItemError(said or f"{start}, which answers a search; its log says more")


def _patient() -> Callable[[Exception], bool]:
    """Return an `is_transient` that gives up after a few answers of 500: this file's fault."""
    left = _MAX_INTERNAL_ERRORS

    def is_worth_repeating(error: Exception) -> bool:
        nonlocal left
        left -= isinstance(error, HTTPError) and error.response.status_code == 500
        return left > 0 and is_transient(error)

    return is_worth_repeating


def _get(
    archive: Archive,
    url: str,
    accept: str,
    query: Mapping[str, str],
    config: StoreConfig,
    is_worth_repeating: Callable[[Exception], bool],
) -> tuple[str, bytes]:
    """Return content type and body of an answer; repeats what may pass."""

    def once() -> tuple[str, bytes]:
        options = {"params": query, "headers": {"Accept": accept}, "stream": True}
        timeout = (config.connect_timeout_s, config.read_timeout_s)
        with session_for().get(url, **options, timeout=timeout) as answer:
            check_status(answer)
            chunks, size = [], 0
            for chunk in answer.iter_content(_CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise too_large(f"an answer of over {MAX_FILE_BYTES} bytes")
                chunks.append(chunk)
            return answer.headers.get("Content-Type", ""), b"".join(chunks)

    backoff = Backoff(config.retry_total_s, where=archive.host)
    return retrying(once, is_worth_repeating, backoff)


def parts_of(body: bytes, content_type: str) -> list[bytes]:
    """Return the parts of a multipart answer (RFC 2046 5.1.1), without their headers.

    What stands before the first boundary is passed over. Lines may end in line feeds alone.
    """
    message = Message()
    message["Content-Type"] = content_type
    boundary = str(message.get_boundary(""))
    if message.get_content_maintype() != "multipart" or not boundary:
        return []
    named = rb"--" + re.escape(boundary.encode())
    marks = list(re.finditer(rb"(?:\A|(?<=\n))" + named + rb"(--)?[ \t]*(\r?\n|\Z)", body))
    parts = []
    for mark, following in zip_longest(marks, marks[1:]):
        if mark[1]:
            break
        head = _PART_HEAD.match(body, mark.end())
        start = head.end() if head else mark.end()
        if following is None:
            parts.append(body[start:])
        else:
            parts.append(body[start : following.start()].removesuffix(mark[2]))
    return parts


def session_for() -> requests.Session:
    """Return a session with the credentials of the environment; connections are kept.

    Raises:
        StoreAccessError: the credentials are incomplete or the file of certificates is missing.
    """
    token, user = (os.environ.get(f"DICOMWEB_{name}", "").strip() for name in ("TOKEN", "USER"))
    password = os.environ.get("DICOMWEB_PASSWORD", "")
    if bool(user) != bool(password):
        missing = "DICOMWEB_PASSWORD" if user else "DICOMWEB_USER"
        raise StoreAccessError(f"the environment variable {missing} is not set; {_DOCUMENT}")
    if token and user:
        raise StoreAccessError(
            f"DICOMWEB_TOKEN and DICOMWEB_USER are both set; unset one of them; {_DOCUMENT}"
        )
    bundle = os.environ.get("DICOMWEB_CA_BUNDLE", "").strip()
    if bundle and not Path(bundle).is_file():
        raise StoreAccessError(f"DICOMWEB_CA_BUNDLE names {bundle}, not a file; {_DOCUMENT}")
    return _opened((token, user, password), bundle, os.getpid())


class _Session(requests.Session):  # type: ignore[misc]
    """A session that follows no redirect, whatever the request says."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return that there is none."""


@lru_cache(maxsize=8)
def _opened(credentials: tuple[str, str, str], bundle: str, process: int) -> requests.Session:
    token, user, password = credentials
    session = _Session()
    # Else credentials of ~/.netrc would replace the token.
    session.trust_env = False
    session.verify = bundle or True
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    elif user:
        session.auth = (user, password)
    return session


def check_status(answer: requests.Response) -> None:
    """Raise `HTTPError` for whatever is not a success; a redirect is none."""
    if 300 <= answer.status_code < 400:
        raise HTTPError("redirect", response=answer)
    answer.raise_for_status()


def is_transient(error: Exception) -> bool:
    """Tell whether a request that failed so is worth another attempt."""
    if isinstance(error, HTTPError):
        return error.response.status_code in _TRANSIENT_STATUS
    lost = isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError)
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
    if 300 <= status < 400:
        return StoreAccessError(
            f"{start}: the archive redirects ({status}), as to a login page; that is not followed, "
            "since X-rays and credentials would go elsewhere: give its final address and "
            "credentials"
        )
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
