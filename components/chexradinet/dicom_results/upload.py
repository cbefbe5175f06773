"""DICOM results to an archive by STOW-RS (DICOM PS3.18 section 10.5): optional, repeatable.

    <results>/dicom/…/*.dcm -> dicomweb://host[:port]/path

Address and credentials are those of the archive as a source: `DICOMWEB_TOKEN`, or `DICOMWEB_USER`
and `DICOMWEB_PASSWORD`, and `DICOMWEB_CA_BUNDLE` (see `dicom.web`). Identifiers of results are
derived, so that sending them again gives the archive nothing new: an instance that it has already
counts as done. A run that broke off is simply repeated. Send a night's results once its plans are
complete: before, some may still be taken away, such as those of a duplicate.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from requests.exceptions import HTTPError  # type: ignore[import-untyped]

from chexradinet.config import StoreConfig
from chexradinet.dicom.web_access import RAW_ERRORS, client_for, is_transient, translated
from chexradinet.dicom.web_uri import Archive, parse_archive
from chexradinet.errors import (
    StoreAccessError,
    StoreError,
    StoreFullError,
    StoreIntegrityError,
    StoreNotFoundError,
    StoreRefusedError,
)
from chexradinet.store import exists, open_store
from chexradinet.store.opening import DEFAULT
from chexradinet.store.retry import Backoff, retrying

DICOM_SUFFIX = ".dcm"
"""How names of DICOM results end."""

_FAILED_SEQUENCE, _STORED_SEQUENCE, _REASON = "00081198", "00081199", "00081197"
_DUPLICATE = 0x0111
_NOT_AUTHORIZED = 0x0124
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_CONFLICT, _NO_SPACE = 409, 507
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOutcome:
    """How many results the archive has now."""

    stored: int = 0
    """Taken by the archive; many archives count what they had before here as well."""
    already_there: int = 0
    """Refused only because the archive had them."""


def upload_results(
    results_uri: str, archive_uri: str, config: StoreConfig = DEFAULT
) -> UploadOutcome:
    """Send every DICOM result below a location to an archive, in key order.

    Args:
        results_uri: A folder such as `s3://bucket/results/dicom/date=2026-01-31`.
        archive_uri: `dicomweb://host[:port]/path`.
        config: How often and how long to try.

    Raises:
        ConfigError: one of the addresses cannot be read.
        StoreAccessError: the archive or the store does not let us in.
        StoreFullError: the archive has no space left.
        StoreUnavailableError: one of them cannot be reached, also after retries.
        StoreError: the archive refused some results, after all others were sent; says how many.
        StoreNotFoundError: there is no such folder.
    """
    if not exists(results_uri, config):
        raise StoreNotFoundError(
            f"{results_uri} is not there; needed is a night's folder, such as "
            "RESULTS/dicom/date=2026-01-31"
        )
    store, prefix = open_store(results_uri, config)
    stored = already_there = 0
    refused: list[StoreError] = []
    for info in store.list(prefix):
        if not info.key.endswith(DICOM_SUFFIX):
            continue
        try:
            outcome = upload_instance(store.get(info.key), archive_uri, config)
        except StoreRefusedError as error:
            refused.append(error)
            continue
        stored += outcome.stored
        already_there += outcome.already_there
    # Counts only: keys and UIDs lead to patients.
    _logger.info("sent %d DICOM results, %d were there", stored, already_there)
    if refused:
        total = stored + already_there + len(refused)
        raise StoreError(f"{len(refused)} of {total} DICOM results were refused; {refused[0]}")
    return UploadOutcome(stored=stored, already_there=already_there)


def upload_instance(
    content: bytes, archive_uri: str, config: StoreConfig = DEFAULT
) -> UploadOutcome:
    """Send one DICOM file to an archive.

    Raises:
        StoreRefusedError: the archive does not take this instance; the message has its reason.
        StoreIntegrityError: the archive's answer does not say what became of it.
        StoreError: as `upload_results`.
    """
    archive = parse_archive(archive_uri, dates_needed=False)
    start = f"cannot store a DICOM result at {archive.host}"
    try:
        status, answer = retrying(
            lambda: _post(content, archive, config), is_transient, Backoff(config.retry_total_s)
        )
    except HTTPError as error:
        if error.response.status_code == _NO_SPACE:
            raise StoreFullError(f"{start}: it has no space left (507)") from error
        raise translated(error, start) from error
    except RAW_ERRORS as error:
        raise translated(error, start) from error
    return _outcome(status, answer, start)


def _post(content: bytes, archive: Archive, config: StoreConfig) -> tuple[int, bytes]:
    """Send one file; return status and body of an answer that tells what became of it."""
    client = client_for(archive.url, config)
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
    # Not `store_instances`: it parses, and writing again need not give the same bytes.
    response = client._session.post(
        f"{archive.url}/studies",
        data=b"".join([head.encode(), content, f"\r\n--{boundary}--\r\n".encode()]),
        headers={
            "Accept": "application/dicom+json",
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        },
        timeout=(config.connect_timeout_s, config.read_timeout_s),
    )
    if response.status_code != _CONFLICT:
        response.raise_for_status()
    return int(response.status_code), bytes(response.content)


def _outcome(status: int, answer: bytes, start: str) -> UploadOutcome:
    try:
        told = json.loads(answer)
        # Some archives put the data set into a list, as search results are.
        told = told[0] if isinstance(told, list) and told else told
        failures = [_reason(item) for item in told.get(_FAILED_SEQUENCE, {}).get("Value", [])]
        stored = told.get(_STORED_SEQUENCE, {}).get("Value", [])
    except (ValueError, AttributeError, TypeError, LookupError):
        failures, stored = [], []
        if status == 200:
            return UploadOutcome(stored=1)
    if failures:
        return _refused(failures[0], start)
    if stored or status == 200:
        return UploadOutcome(stored=1)
    raise StoreIntegrityError(
        f"{start}: its answer ({status}) does not say whether it was stored; look into its log, "
        "then send again: what it has already is no error"
    )


def _reason(item: Mapping[str, Any]) -> int:
    return int(item[_REASON]["Value"][0])


def _refused(reason: int, start: str) -> UploadOutcome:
    """Judge a Failure Reason (0008,1197) of PS3.18 table I.2-2 and PS3.7 annex C."""
    if reason == _DUPLICATE:
        return UploadOutcome(already_there=1)
    if reason in _OUT_OF_RESOURCES:
        raise StoreFullError(f"{start}: it is out of resources ({reason:04X}H); make space there")
    if reason == _NOT_AUTHORIZED:
        raise StoreAccessError(f"{start}: these credentials may not store ({reason:04X}H)")
    raise StoreRefusedError(
        f"{start}: it refused with failure reason {reason:04X}H; its log says more"
    )
