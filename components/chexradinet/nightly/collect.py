"""Collecting a plan: the files that people and systems read, then the word that it is complete.

Everything is made from what the shards hold, so that a killed collection, or two at once, write the
same bytes. Files of a whole night (worklist, report) are written by compare and swap, and only
while the plan is unfinished: a run that fell behind cannot replace a later plan's.
"""

import hashlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chexradinet.errors import ArtifactError, StoreConflictError, StoreError, StoreNotFoundError
from chexradinet.nightly.addresses import Addresses
from chexradinet.nightly.dicom import keep_dicom
from chexradinet.nightly.files import (
    digest_without_timings,
    night_key,
    put_files,
    write_scores,
)
from chexradinet.nightly.ledger import (
    Ledger,
    Plan,
    document_bytes,
    open_ledger,
    plan_numbers,
    read_completion,
    read_plan,
    write_index,
)
from chexradinet.nightly.merge import Merged, earlier_scores, merge
from chexradinet.nightly.model import NightModel, open_model
from chexradinet.nightly.outcome import Night, night_of
from chexradinet.nightly.summary import (
    most_urgent,
    night_drift,
    night_report,
    with_timings,
)
from chexradinet.nightly.unscored import unscored_files
from chexradinet.nightly.worklist import DaysList, end_of, studies_of
from chexradinet.reports.nightly import Lacking, write_night_report, write_worklist_page
from chexradinet.reports.worklist import worklist, worklist_csv

_log = logging.getLogger(__name__)

_ATTEMPTS = 5


def collect(addresses: Addresses, number: int) -> Night:
    """Write the results of a plan and complete it; doing it again changes nothing.

    Args:
        addresses: Models and results; the inbox is not read.
        number: Of the plan; all of its shards are scored.

    Raises:
        ArtifactError: a shard is missing or damaged, or the model was changed.
        StoreError: results cannot be read or written.
    """
    ledger = open_ledger(addresses.results_uri)
    plan = read_plan(ledger, number)
    return collect_plan(ledger, plan, open_model(addresses, plan))


def collect_plan(ledger: Ledger, plan: Plan, model: NightModel) -> Night:
    """Collect a plan with its model at hand; see `collect`."""
    started = time.perf_counter()
    numbers, complete = plan_numbers(ledger)
    _require_order(plan, numbers, complete)
    merged = merge(ledger, plan, earlier_scores(ledger, plan, complete))
    listed = studies_of(ledger, plan, merged, complete, model.settings.worklist)
    unscored = unscored_files(ledger, listed.earlier, merged)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, drift, report = _write(ledger, plan, merged, model, folder)
        digests = put_files(ledger, plan, files)
        scores_digest = digest_without_timings(folder / f"part-{plan.number:06d}.csv")
        _put_of_night(ledger, plan, "report.html", report.read_bytes())
        _put_worklist(ledger, plan, model, (listed, unscored), folder)
        page = report.read_bytes()
    if model.settings.dicom_results:
        keep_dicom(ledger, plan, (image.object_key for image in merged.images))
    write_index(ledger, plan.number, merged.index)
    _complete(ledger, plan, merged, digests, scores_digest)
    night = night_of(plan, merged, model, drift, (page, time.perf_counter() - started))
    _log.info("%s", night.as_text())
    return night


def _require_order(plan: Plan, numbers: Sequence[int], complete: Sequence[int]) -> None:
    """Refuse to complete a plan before an earlier one: duplicates are told by the earlier ones."""
    before = [number for number in numbers if number < plan.number and number not in complete]
    if before:
        raise ArtifactError(
            f"plan {before[0]} comes before plan {plan.number} and is not complete; collect "
            f"plan {before[0]} first"
        )


def _write(
    ledger: Ledger, plan: Plan, merged: Merged, model: NightModel, folder: Path
) -> tuple[list[Path], dict[str, Any] | None, Path]:
    """Write all files of the plan into a folder; return them, the drift, and the report's path."""
    number = f"{plan.number:06d}"
    shown = frozenset(image.image_key for image in most_urgent(merged.images, model))
    files, embeddings, pictures = write_scores(ledger, plan, merged, shown, folder)
    drift = night_drift(merged, embeddings, model)
    measured = folder / f"drift-{number}.json"
    measured.write_bytes(document_bytes("nightly-drift", drift or {"status": "no_reference"}))
    page = folder / f"report-{number}.html"
    report = night_report(plan, merged, model, drift, pictures)
    scores = folder / f"part-{number}.parquet"
    write_night_report(page, with_timings(report, scores, model.findings[0], merged.score_s))
    return [*files, measured, page], drift, page


def _put_worklist(
    ledger: Ledger,
    plan: Plan,
    model: NightModel,
    known: tuple[DaysList, Mapping[tuple[str, str], int]],
    folder: Path,
) -> None:
    config = model.settings.worklist
    listed, unscored = known
    entries = worklist(listed.images, end_of(plan.date), config)
    _put_of_night(ledger, plan, "worklist.csv", worklist_csv(entries).encode())
    page = folder / "worklist.html"
    write_worklist_page(page, plan.date, entries, config, Lacking(unscored, listed.foreign))
    _put_of_night(ledger, plan, "worklist.html", page.read_bytes())


def _put_of_night(ledger: Ledger, plan: Plan, name: str, data: bytes) -> None:
    """Write a file that later plans of the night replace, unless the plan is complete already.

    A later plan is collected only once this one is complete. So where one wrote the file, either
    its ETag has changed since it was asked for, or this plan is found complete.
    """
    key = night_key(ledger, plan, name)
    for _ in range(_ATTEMPTS):
        try:
            etag: str | None = ledger.store.stat(key).etag
        except StoreNotFoundError:
            etag = None
        if read_completion(ledger, plan.number) is not None:
            return
        try:
            if etag is None:
                ledger.store.create(key, data)
            else:
                ledger.store.put(key, data, if_match=etag)
        except StoreConflictError:
            continue
        return
    raise StoreError(
        f"{name} of {plan.date} was changed {_ATTEMPTS} times by other runs; let them end and run "
        "again"
    )


def _complete(
    ledger: Ledger,
    plan: Plan,
    merged: Merged,
    digests: Mapping[str, str],
    scores_digest: str,
) -> None:
    statuses = Counter(merged.index.column("status").to_pylist())
    document = {
        "number": plan.number,
        "date": plan.date,
        "bundle_digest": plan.bundle_digest,
        "newest_arrival": max(image.arrived for image in plan.images).isoformat(),
        "counts": dict(sorted(statuses.items())),
        "index_sha256": hashlib.sha256(
            ledger.store.get(ledger.plan_key(plan.number, "index.parquet"))
        ).hexdigest(),
        "files": dict(sorted(digests.items())),
        "scores_sha256": scores_digest,
    }
    key = ledger.plan_key(plan.number, "complete.json")
    try:
        ledger.store.create(key, document_bytes("nightly-completion", document))
    except StoreConflictError:
        _log.info("plan %d was completed meanwhile by another run", plan.number)
