"""DICOM results to an archive by STOW-RS (DICOM PS3.18 section 10.5): optional, repeatable.

    <results>/dicom/…/*.dcm -> dicomweb://host[:port]/path

Address and credentials are those of the archive as a source: `DICOMWEB_TOKEN`, or `DICOMWEB_USER`
and `DICOMWEB_PASSWORD`, and `DICOMWEB_CA_BUNDLE` (see `dicom.web`). Identifiers of results are
derived, so that sending them again gives the archive nothing new: an instance that it has already
counts as done. A run that broke off is simply repeated. Send a night's results once its plans are
complete: before, some may still be taken away, such as those of a duplicate.

A result counts as stored only if the archive's answer names it among what it stored: a status of
200 alone may come from a login page or a gateway.
"""

import io
import json
import logging
import secrets
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from requests.exceptions import HTTPError  # type: ignore[import-untyped]

from chexradinet.config import StoreConfig
from chexradinet.dicom import Archive, parse_archive
from chexradinet.dicom.web import RAW_ERRORS, check_status, is_transient, session_for, translated
from chexradinet.errors import (
    StoreAccessError,
    StoreFullError,
    StoreIntegrityError,
    StoreNotFoundError,
    StoreRefusedError,
)
from chexradinet.store import DEFAULT, exists, open_store
from chexradinet.store.protocol import Backoff, retrying

DICOM_SUFFIX = ".dcm"
"""How names of DICOM results end."""

_FAILED_SEQUENCE, _STORED_SEQUENCE = "00081198", "00081199"
_INSTANCE, _REASON = "00081155", "00081197"
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
    refused: int = 0
    """Refused for another reason."""
    refusal: str = ""
    """The first of these reasons, without patient data."""

    def __add__(self, other: "UploadOutcome") -> "UploadOutcome":
        return UploadOutcome(
            stored=self.stored + other.stored,
            already_there=self.already_there + other.already_there,
            refused=self.refused + other.refused,
            refusal=self.refusal or other.refusal,
        )

    def as_text(self) -> str:
        """Return the counts as one phrase."""
        refused = f", {self.refused} refused" if self.refused else ""
        return f"{self.stored} stored, {self.already_there} already there{refused}"

    def require_all(self) -> None:
        """Raise an error if a result was refused.

        Raises:
            StoreRefusedError: says how many, and the first reason.
        """
        if self.refused:
            total = self.stored + self.already_there + self.refused
            raise StoreRefusedError(
                f"{self.refused} of {total} DICOM results were refused; {self.refusal}"
            )


def upload_results(
    results_uri: str, archive_uri: str, config: StoreConfig = DEFAULT, start: str = ""
) -> UploadOutcome:
    """Send every DICOM result below a location to an archive, in key order; see `require_all`.

    Args:
        results_uri: A folder such as `s3://bucket/results/dicom/date=2026-01-31`.
        archive_uri: `dicomweb://host[:port]/path`.
        config: How often and how long to try.
        start: How the names below the folder begin that are sent; empty for all.

    Raises:
        ConfigError: one of the addresses cannot be read.
        StoreAccessError: the archive or the store does not let us in.
        StoreFullError: the archive has no space left.
        StoreUnavailableError: one of them cannot be reached, also after retries.
        StoreNotFoundError: there is no such folder.
    """
    if not exists(results_uri, config):
        raise StoreNotFoundError(
            f"{results_uri} is not there; give a night's folder, such as "
            "RESULTS/dicom/date=2026-01-31"
        )
    store, prefix = open_store(results_uri, config)
    outcome = UploadOutcome()
    for info in store.list(prefix + start):
        if not info.key.endswith(DICOM_SUFFIX):
            continue
        try:
            outcome += upload_instance(store.get(info.key), archive_uri, config)
        except StoreRefusedError as error:
            outcome += UploadOutcome(refused=1, refusal=str(error))
    # Counts only: keys and UIDs lead to patients.
    _logger.info("DICOM results: %s", outcome.as_text())
    return outcome


def upload_instance(
    content: bytes, archive_uri: str, config: StoreConfig = DEFAULT
) -> UploadOutcome:
    """Send one DICOM file to an archive.

    Raises:
        StoreRefusedError: the archive does not take this instance; the message has its reason.
        StoreIntegrityError: the archive's answer does not say what became of this instance.
        StoreError: as `upload_results`.
    """
    archive = parse_archive(archive_uri, dates_needed=False)
    start = f"cannot store a DICOM result at {archive.host}"
    uid = _instance_uid(content, start)
    try:
        status, answer = retrying(
            lambda: _post(content, archive, config),
            is_transient,
            Backoff(config.retry_total_s, where=archive.host),
        )
    except HTTPError as error:
        if error.response.status_code == _NO_SPACE:
            raise StoreFullError(f"{start}: it has no space left (507)") from error
        raise translated(error, start) from error
    except RAW_ERRORS as error:
        raise translated(error, start) from error
    return _outcome(status, _answer(answer), uid, start)


def _instance_uid(content: bytes, start: str) -> str:
    try:
        header = pydicom.dcmread(io.BytesIO(content), specific_tags=["SOPInstanceUID"])
        return str(header.SOPInstanceUID)
    except (InvalidDicomError, AttributeError, EOFError) as error:
        raise StoreRefusedError(f"{start}: it is not a DICOM file with a UID") from error


def _post(content: bytes, archive: Archive, config: StoreConfig) -> tuple[int, bytes]:
    """Send one file; return status and body of an answer that may say what became of it."""
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
    response = session_for().post(
        f"{archive.url}/studies",
        data=b"".join([head.encode(), content, f"\r\n--{boundary}--\r\n".encode()]),
        headers={
            "Accept": "application/dicom+json",
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        },
        timeout=(config.connect_timeout_s, config.read_timeout_s),
    )
    if response.status_code != _CONFLICT:
        check_status(response)
    return int(response.status_code), bytes(response.content)


def _answer(body: bytes) -> Mapping[str, Any]:
    """Read a data set in JSON, or in XML, that some archives answer in whatever they are asked."""
    try:
        document = json.loads(body)
    except ValueError:
        return _xml_answer(body)
    # Some archives put the data set into a list, as search results are.
    found = document[0] if isinstance(document, list) and document else document
    return found if isinstance(found, Mapping) else {}


def _xml_answer(body: bytes) -> Mapping[str, Any]:
    if b"<!DOCTYPE" in body:  # a web page, or a bomb of entities
        return {}
    try:
        return _attributes(ET.fromstring(body))  # noqa: S314 (without a DTD it cannot expand)
    except ET.ParseError:
        return {}


def _attributes(element: ET.Element) -> dict[str, Any]:
    """Return a Native DICOM Model (PS3.19 annex A) as the DICOM JSON model has it."""
    found = {}
    for attribute in element.findall("{*}DicomAttribute"):
        values: list[Any] = [value.text for value in attribute.findall("{*}Value")]
        values += [_attributes(item) for item in attribute.findall("{*}Item")]
        found[attribute.get("tag", "")] = {"Value": values}
    return found


def _outcome(status: int, answer: Mapping[str, Any], uid: str, start: str) -> UploadOutcome:
    """Judge an answer: the instance failed, is stored by name, or nothing is known of it."""
    for item in _items(answer, _FAILED_SEQUENCE):
        if _value(item, _INSTANCE) in (uid, None):
            return _refused(_value(item, _REASON), start)
    if any(_value(item, _INSTANCE) == uid for item in _items(answer, _STORED_SEQUENCE)):
        return UploadOutcome(stored=1)
    raise StoreIntegrityError(
        f"{start}: its answer ({status}) does not say whether the result was stored; check that "
        "the address is that of STOW-RS, look into its log, then send again: results that it "
        "already has are not an error"
    )


def _items(answer: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    sequence = answer.get(tag)
    items = sequence.get("Value") if isinstance(sequence, Mapping) else None
    return [item for item in items or () if isinstance(item, Mapping)]


def _value(item: Mapping[str, Any], tag: str) -> str | None:
    """Return the first value of an attribute as text, None if there is none."""
    attribute = item.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    return str(values[0]).strip() if isinstance(values, list) and values else None


def _refused(stated: str | None, start: str) -> UploadOutcome:
    """Judge a Failure Reason (0008,1197) of PS3.18 table I.2-2 and PS3.7 annex C."""
    if stated is None or not stated.isdecimal():
        raise StoreRefusedError(f"{start}: it refused without a reason; its log may say more")
    reason = int(stated)
    if reason == _DUPLICATE:
        return UploadOutcome(already_there=1)
    if reason in _OUT_OF_RESOURCES:
        raise StoreFullError(f"{start}: it is out of resources ({reason:04X}H); make space there")
    if reason == _NOT_AUTHORIZED:
        raise StoreAccessError(f"{start}: these credentials may not store ({reason:04X}H)")
    raise StoreRefusedError(
        f"{start}: it refused with failure reason {reason:04X}H; its log says more"
    )
