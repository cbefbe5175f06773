"""X-rays from a PACS: QIDO-RS finds them by study date, WADO-RS fetches them (DICOM PS3.18).

`dicomweb://host[:port]/path?study_date=20260101-20260131` speaks TLS, except to this machine
itself; `dicomweb+https://` always does, `dicomweb+http://` never, and it goes
to another machine only where `CHEXRADINET_ALLOW_HTTP_PACS` is 1. Who asks comes from the
environment: a bearer token in `DICOMWEB_TOKEN`, or `DICOMWEB_USER` and `DICOMWEB_PASSWORD`;
`DICOMWEB_CA_BUNDLE` names authorities to trust.

Search goes from studies to series to instances, as archives support it best; searches over all
instances at once are slow or missing in many.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from chexradinet.config import StoreConfig
from chexradinet.dicom.web_access import RAW_ERRORS, client_for, is_transient, translated
from chexradinet.dicom.web_uri import Archive, parse_archive
from chexradinet.errors import StoreError, StoreIntegrityError
from chexradinet.store.opening import DEFAULT
from chexradinet.store.retry import Backoff, retrying

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

T = TypeVar("T")

MODALITIES = ("CR", "DX", "DR", "RG")
"""DICOM modalities of projection radiographs; DR and RG are of old devices. Left out are RF, mostly
films of many frames, and OT and SC, mostly captures of something else in studies of CT."""
PAGE_SIZE = 500
"""Most studies a search asks for at once; an archive may give fewer."""
_STUDY_UID, _SERIES_UID, _SOP_UID, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRef:
    """One X-ray in an archive.

    Its UIDs, also in the URI, identify a patient to who has the archive: keep them out of logs.
    """

    uri: str
    """Name that `fetch` takes."""
    study_uid: str
    """Study Instance UID (0020,000D)."""
    series_uid: str
    """Series Instance UID (0020,000E)."""
    sop_uid: str
    """SOP Instance UID (0008,0018)."""
    modality: str
    """Modality (0008,0060), one of `MODALITIES`."""


def is_dicomweb(uri: str) -> bool:
    """Tell whether a URI names an archive rather than object storage."""
    return uri.partition("://")[0].lower() in ("dicomweb", "dicomweb+http", "dicomweb+https")


def list_instances(uri: str, config: StoreConfig = DEFAULT) -> Iterator[InstanceRef]:
    """Yield the radiographs of an archive whose study is of the given dates, each once.

    Args:
        uri: The archive with `?study_date=`: a day, `first-last`, `first-` or `-last`, as YYYYMMDD.
        config: How often and how long to try.

    Raises:
        ConfigError: the URI has no valid address or no valid dates.
        StoreAccessError: the archive does not let us in.
        StoreNotFoundError: there is no DICOMweb service at this address.
        StoreUnavailableError: it cannot be reached, also after retries.
    """
    archive = parse_archive(uri, dates_needed=True)
    client = client_for(archive.url, config)
    for study_uid in _studies(client, archive, config):
        yield from _instances(client, archive, study_uid, config)


def fetch(ref: InstanceRef, config: StoreConfig = DEFAULT) -> bytes:
    """Return a radiograph as a DICOM file, in the transfer syntax it is stored in.

    Raises:
        StoreNotFoundError: it is no longer there.
        StoreIntegrityError: something else came.
        StoreAccessError: the archive does not let us in.
        StoreUnavailableError: it cannot be reached, also after retries.
    """
    archive = parse_archive(ref.uri, dates_needed=False)
    # The path of the URI is the path of the resource, so the archive's address is all of it.
    client = client_for(archive.url.partition("/studies/")[0], config)

    def get() -> list[bytes]:
        # Not `retrieve_instance`: it parses, and writing again would not give the stored bytes.
        response = client._http_get(archive.url, headers={"Accept": _ACCEPT})
        if response.headers.get("Content-Type", "").startswith("application/dicom"):
            return [response.content]
        return list(client._decode_multipart_message(response, stream=False))

    parts = _ask(get, archive, "fetch a radiograph", config)
    if len(parts) != 1 or ref.sop_uid.encode() not in parts[0]:
        raise StoreIntegrityError(
            f"the archive at {archive.host} answered with {len(parts)} files, or with another "
            "than the one that was asked for; run again, and ask its administrator if it stays so"
        )
    return parts[0]


def _studies(client: "DICOMwebClient", archive: Archive, config: StoreConfig) -> Iterator[str]:
    yielded: set[str] = set()
    for modality in MODALITIES:
        seen: set[str] = set()
        filters = {"StudyDate": archive.study_date, "ModalitiesInStudy": modality}
        offset = 0
        while True:
            search = partial(
                client.search_for_studies, search_filters=filters, limit=PAGE_SIZE, offset=offset
            )
            found = _ask(search, archive, "search for studies", config)
            uids = [_value(item, _STUDY_UID, archive) for item in found]
            offset += len(uids)
            # Not only an empty page ends it: archives that do not know `offset` repeat the first.
            if seen.issuperset(uids):
                break
            seen.update(uids)
            yield from dict.fromkeys(uid for uid in uids if uid not in yielded)
            yielded.update(uids)


def _instances(
    client: "DICOMwebClient", archive: Archive, study_uid: str, config: StoreConfig
) -> Iterator[InstanceRef]:
    search = partial(client.search_for_series, study_uid)
    # Chosen here and not by the archive: not all of them heed a filter on the series.
    modalities = {
        _value(item, _SERIES_UID, archive): _value(item, _MODALITY, archive)
        for item in _ask(search, archive, "search for series", config)
    }
    for series_uid, modality in modalities.items():
        if modality not in MODALITIES:
            continue
        search = partial(client.search_for_instances, study_uid, series_uid)
        found = _ask(search, archive, "search for instances", config)
        for sop_uid in dict.fromkeys(_value(item, _SOP_UID, archive) for item in found):
            names = ("studies", study_uid, "series", series_uid, "instances", sop_uid)
            path = "/".join(quote(name, safe="") for name in names)
            yield InstanceRef(
                uri=f"{archive.uri}/{path}",
                study_uid=study_uid,
                series_uid=series_uid,
                sop_uid=sop_uid,
                modality=modality,
            )


def _value(item: dict[str, Any], tag: str, archive: Archive) -> str:
    try:
        return str(item[tag]["Value"][0])
    except (KeyError, IndexError, TypeError) as error:
        raise StoreError(
            f"the archive at {archive.host} gave a search result without {tag}; it does not "
            "follow DICOM PS3.18: ask its administrator"
        ) from error


def _ask(operation: Callable[[], T], archive: Archive, what: str, config: StoreConfig) -> T:
    try:
        return retrying(operation, is_transient, Backoff(config.retry_total_s))
    except RAW_ERRORS as error:
        raise translated(error, f"cannot {what} at {archive.host}") from error
