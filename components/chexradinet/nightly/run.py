"""The nightly run: its stages as Kubeflow runs them, and all of them in one go for a shell.

What needs torch is imported where it is used: planning and collecting start seconds earlier.

A plan that is worked on while `archive_uri` is set is marked. Once it is complete and the archive
has answered for each of its DICOM results, that is noted beside the mark. Whatever has a mark and
no note is sent by the next run: an archive that cannot be reached delays results and loses none
(ADR 0024).
"""

import html
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from chexradinet.config import StoreConfig
from chexradinet.config.nightly import PlanConfig, Run, ScoreConfig
from chexradinet.errors import (
    ChexRadiNetError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from chexradinet.monitoring import NightlyTelemetry, push
from chexradinet.nightly import Addresses, ShardOutcome
from chexradinet.nightly.collect import collect, collect_plan, night_key
from chexradinet.nightly.history import PlanHead, note_try, read_history
from chexradinet.nightly.ledger import (
    Ledger,
    dicom_start,
    document_bytes,
    holding,
    open_ledger,
    read_json,
    read_plan,
    release,
    store_time,
    this_process,
)
from chexradinet.nightly.plan import PlanOutcome, parts_of, place_of, plan
from chexradinet.nightly.summary import Night, combine, night_telemetry
from chexradinet.store import DEFAULT

ENDED_WELL = frozenset({"SUCCEEDED", "COMPLETE", "CACHED"})
"""Names of success: of the local runner and of the API, and of the backend's metadata store."""

_KIND, _RUN = "nightly-run", ("ledger", "run.json")
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the shards done and the shards there are."""
_OF_ARCHIVE = (StoreUnavailableError, StoreAccessError, StoreFullError)
"""Errors that every further result would meet."""


@dataclass(frozen=True, kw_only=True)
class _RunRecord:
    """The run that held the lease last, as `ledger/run.json` keeps it.

    The exit task reads it rather than trust Kubeflow alone, which names the states of a run in
    several ways and may leave a run failed whose step was retried with success.
    """

    run_id: str
    began: str
    """By the store's clock, ISO 8601 in UTC; a stage that is retried does not change it."""
    finished: bool = False
    """Whether nothing of its work is left."""


def new_run() -> Run:
    """Return a run that only this process works for."""
    return Run(run_id=f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}")


def plan_stage(addresses: Addresses, config: PlanConfig, run: Run) -> PlanOutcome:
    """Plan, unless another run is at work; see `plan`."""
    started = time.monotonic()
    ledger = open_ledger(addresses.results_uri)
    with holding(ledger, this_process(run.run_id, run.lease_ttl_s)) as ours:
        if not ours:
            return _another_run()
        _begin(ledger, run.run_id)
        outcome = _planned(ledger, addresses, config)
    stages = {"plan": time.monotonic() - started}
    if outcome.parts:
        push(NightlyTelemetry(stage_seconds=stages))
    else:
        push(replace(night_telemetry(addresses, None), stage_seconds=stages))
        _finish(ledger, run.run_id)
        release(ledger, run.run_id)
    return outcome


def score_stage(
    addresses: Addresses, work: str, index: int, config: ScoreConfig, run: Run
) -> ShardOutcome:
    """Score a shard of the work that planning gave; see `score`."""
    from chexradinet.nightly.score import score

    number, shard = place_of(work, index)
    ledger = open_ledger(addresses.results_uri)
    # Without the lease it continues: whoever has it finds what is done, and nothing is done twice.
    with holding(ledger, this_process(run.run_id, run.lease_ttl_s)):
        note_try(ledger, number, store_time(ledger).date().isoformat())
        return score(addresses, number, shard, config)


def collect_stage(addresses: Addresses, work: str, run: Run) -> Night:
    """Collect every plan of the work, the oldest first, and push the figures of all.

    Raises:
        ConfigError: the work holds no plan.
    """
    parts = parts_of(work)
    place_of(work, 0)
    ledger = open_ledger(addresses.results_uri)
    with holding(ledger, this_process(run.run_id, run.lease_ttl_s), last=True):
        night = combine([collect(addresses, number) for number, _ in parts])
        _finish(ledger, run.run_id)
    push(night_telemetry(addresses, night))
    return night


def nightly(
    addresses: Addresses,
    config: PlanConfig,
    scoring: ScoreConfig,
    run: Run | None = None,
    progress: Progress | None = None,
) -> tuple[PlanOutcome, Night | None]:
    """Plan, score and collect in this process; return what was planned and what came of it.

    Args:
        addresses: Inbox, models and results.
        config: Settings of planning.
        scoring: Settings of scoring.
        run: None for a new one.
        progress: Called after each shard.

    Raises:
        ChexRadiNetError: a stage failed; running again continues where it stopped.
    """
    run = run or new_run()
    started = time.monotonic()
    ledger = open_ledger(addresses.results_uri)
    try:
        with holding(ledger, this_process(run.run_id, run.lease_ttl_s), last=True) as ours:
            if not ours:
                return _another_run(), None
            outcome = _planned(ledger, addresses, config)
            planned_s = time.monotonic() - started
            night = _work(addresses, outcome, scoring, progress)
            figures = night_telemetry(addresses, night)
    except BaseException:
        push(NightlyTelemetry(success=False, duration_seconds=time.monotonic() - started))
        raise
    stages = {"plan": planned_s, **figures.stage_seconds}
    spent_s = time.monotonic() - started
    push(replace(figures, success=True, duration_seconds=spent_s, stage_seconds=stages))
    return outcome, night


def _another_run() -> PlanOutcome:
    outcome = PlanOutcome(status="another_run_active")
    _log.warning("%s", outcome.as_text())
    return outcome


def _planned(ledger: Ledger, addresses: Addresses, config: PlanConfig) -> PlanOutcome:
    outcome = plan(addresses, config)
    if addresses.archive_uri:
        for number, _ in outcome.parts:  # marked, unless an earlier run did so
            ledger.create(ledger.plan_key(number, "to-archive"), b"")
    return outcome


def _work(
    addresses: Addresses, outcome: PlanOutcome, scoring: ScoreConfig, progress: Progress | None
) -> Night | None:
    from chexradinet.nightly.score import open_scorer, score_shard

    ledger = open_ledger(addresses.results_uri)
    nights, done = [], 0
    for number, shards in outcome.parts:
        found = read_plan(ledger, number)
        note_try(ledger, number, store_time(ledger).date().isoformat())
        scorer = open_scorer(addresses, found, scoring)
        for shard in range(shards):
            score_shard(ledger, found, shard, scorer, scoring)
            done += 1
            if progress is not None:
                progress(done, outcome.num_shards)
        nights.append(collect_plan(ledger, found, scorer))
    return combine(nights) if nights else None


def report_outcome(results_uri: str, state: str, run_id: str) -> bool:
    """Say how a run ended, and give back what a failed one held; never fails itself.

    A run that has done its work ended well, whatever Kubeflow calls its state. One that did not
    begin and ended well left the work to another run: it has nothing to report.

    Args:
        results_uri: Folder of the results.
        state: As Kubeflow names it: one of `ENDED_WELL`, or anything else for a failure.
        run_id: Name of the run.

    Returns:
        Whether the run ended well.
    """
    finished, duration_s = False, None
    try:
        ledger = open_ledger(results_uri)
        release(ledger, run_id)
        record = _read_run(ledger, run_id)
        if record is not None:
            passed = store_time(ledger) - datetime.fromisoformat(record.began)
            finished, duration_s = record.finished, max(0.0, passed.total_seconds())
    except ChexRadiNetError as error:
        _log.warning("the ledger does not tell how the run ended (%s)", type(error).__name__)
        finished = state in ENDED_WELL
    succeeded = finished or state in ENDED_WELL
    if finished or not succeeded:
        push(NightlyTelemetry(success=succeeded, duration_seconds=duration_s))
    return succeeded


def _begin(ledger: Ledger, run_id: str) -> None:
    """Note that a run begins its work, unless it did so before."""
    if _read_run(ledger, run_id) is None:
        _write(ledger, _RunRecord(run_id=run_id, began=store_time(ledger).isoformat()))


def _finish(ledger: Ledger, run_id: str) -> None:
    """Note that a run has done its work."""
    found = _read_run(ledger, run_id)
    if found is not None:
        _write(ledger, replace(found, finished=True))


def _read_run(ledger: Ledger, run_id: str) -> _RunRecord | None:
    """Return what is noted of a run; None if it never began, or another one began since.

    Raises:
        ArtifactError: the note is damaged or of another schema.
    """
    try:
        document = read_json(ledger, ledger.key(*_RUN), _KIND)
    except StoreNotFoundError:
        return None
    if document["run_id"] != run_id:
        return None
    return _RunRecord(run_id=run_id, began=document["began"], finished=document["finished"])


def _write(ledger: Ledger, record: _RunRecord) -> None:
    ledger.store.put(ledger.key(*_RUN), document_bytes(_KIND, asdict(record)))


if TYPE_CHECKING:
    from chexradinet.dicom_results.upload import UploadOutcome


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
            found = upload_results(
                results_uri, archive_uri, config, dicom_start(head.date, head.number)
            )
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
