"""DICOM results of the nights to an archive: which are meant for it, and what it said to them.

A plan that is worked on while `archive_uri` is set is marked. Once it is complete and the archive
has answered for each of its results, that is noted beside the mark. Whatever has a mark and no note
is sent by the next run: an archive that cannot be reached delays results and loses none (ADR 0024).
"""

import html
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from chexradinet.config import StoreConfig
from chexradinet.errors import (
    StoreAccessError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from chexradinet.monitoring import NightlyTelemetry, push
from chexradinet.nightly.collect import night_key
from chexradinet.nightly.dicom import dicom_start
from chexradinet.nightly.history import PlanHead, read_history
from chexradinet.nightly.ledger import Ledger, document_bytes, open_ledger
from chexradinet.store.opening import DEFAULT

if TYPE_CHECKING:
    from chexradinet.dicom_results.upload import UploadOutcome

_OF_ARCHIVE = (StoreUnavailableError, StoreAccessError, StoreFullError)
"""Errors that every further result would meet."""


def archive_results(
    results_uri: str, archive_uri: str, config: StoreConfig = DEFAULT
) -> "UploadOutcome":
    """Send the DICOM results of every complete plan that waits for the archive; say so in reports.

    Results that the archive has already count as done, so that a run that broke off is repeated.

    Args:
        results_uri: Folder of the results.
        archive_uri: `dicomweb://host[:port]/path`.
        config: How often and how long to try.

    Raises:
        StoreRefusedError: the archive refused some results; they are not sent again, all others
            were.
        StoreError: as `upload_results`, once all that can be sent was; the next run sends the rest.
    """
    # Here, not above: planning and scoring must also run where no DICOM reader is installed.
    from chexradinet.dicom_results.upload import UploadOutcome, upload_results

    started, ledger, total = time.monotonic(), open_ledger(results_uri), UploadOutcome()
    waiting = read_history(ledger).waiting_for_archive()
    failed: dict[int, StoreError] = {}
    for head in waiting:
        try:
            for error in failed.values():
                if isinstance(error, _OF_ARCHIVE):
                    raise error
            found = upload_results(results_uri, archive_uri, config, dicom_start(head))
            note = document_bytes("nightly-archived", asdict(found))
            ledger.store.put(ledger.plan_key(head.number, "archived.json"), note)
        except StoreError as raised:
            failed[head.number] = raised
            _tell_report(ledger, head, f"not sent; the next run tries again: {raised}")
            continue
        _tell_report(ledger, head, f"{found.as_text()}. {found.refusal}")
        total += found
    push(
        NightlyTelemetry(
            stage_seconds={"upload": time.monotonic() - started},
            dicom_results_archived=total.stored + total.already_there,
            dicom_results_refused=total.refused,
            plans_to_archive=len(failed),
        )
    )
    if failed:
        raise next(iter(failed.values()))
    total.require_all()
    return total


def mark_for_archive(ledger: Ledger, numbers: Iterable[int]) -> None:
    """Note that the DICOM results of some plans are for the archive."""
    for number in numbers:
        with suppress(StoreConflictError):  # an earlier run noted it
            ledger.store.create(ledger.plan_key(number, "to-archive"), b"")


def _tell_report(ledger: Ledger, head: PlanHead, text: str) -> None:
    """Write a plan's outcome into the night's report, unless a later plan's took its place."""
    place = re.compile(rb'(?<=<p id="archive-%06d">).*?(?=</p>)' % head.number, re.DOTALL)
    said = f"DICOM results: {html.escape(text.strip())}".encode()
    key = night_key(ledger, head, "report.html")
    with suppress(StoreError):  # the note in the ledger counts, not the page
        etag, page = ledger.store.stat(key).etag, ledger.store.get(key)
        changed = place.sub(lambda _: said, page)
        if changed != page:
            ledger.store.put(key, changed, if_match=etag)
