"""Collecting a plan: the files that people and systems read, then the word that it is complete.

Everything is made from what the shards hold, so that a killed collection, or two at once, write the
same bytes. Files of a whole night (worklist, report) are written by compare and swap, and only
while the plan is unfinished: a run that fell behind cannot replace a later plan's.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexradinet.artifacts import CsvWriter
from chexradinet.errors import ArtifactError, StoreConflictError, StoreError, StoreNotFoundError
from chexradinet.nightly import EXCLUDED, SCHEMA, SCORES, TIMINGS, Addresses
from chexradinet.nightly.history import History, PlanHead, read_history, write_index
from chexradinet.nightly.ledger import (
    Ledger,
    Plan,
    dicom_folder,
    dicom_start,
    document_bytes,
    open_ledger,
    read_completion,
    read_plan,
    store_time,
)
from chexradinet.nightly.merge import (
    Merged,
    WorklistScope,
    end_of,
    merge,
    shards_of,
    studies_of,
    unscored_files,
)
from chexradinet.nightly.model import NightModel, open_model
from chexradinet.nightly.summary import (
    Night,
    most_urgent,
    night_drift,
    night_of,
    night_report,
    with_timings,
)
from chexradinet.reports.nightly import (
    Omissions,
    worklist,
    worklist_csv,
    write_night_report,
    write_worklist_page,
)

_MAX_DRIFT_IMAGES = 2048
"""Most X-rays of a night that are compared with the reference."""

_ATTEMPTS = 5
_log = logging.getLogger(__name__)


def collect(addresses: Addresses, number: int) -> Night:
    """Write the results of a plan and complete it; doing it again changes nothing.

    Args:
        addresses: Models and results; the inbox is not read.
        number: Number of the plan; all of its shards are scored.

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
    history = read_history(ledger)
    skipped = _skipped(history, plan)
    merged = merge(plan, history, skipped)
    listed = studies_of(history, plan, merged, skipped, model.settings.worklist)
    unscored = {
        **unscored_files(history, listed.earlier, merged),
        **_not_seen(history, plan, skipped),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archived = plan.number in history.for_archive
        files, drift, report, pictures = _write(ledger, plan, merged, model, folder, archived)
        digests = _put_files(ledger, plan, files)
        scores_digest = _digest_without_timings(folder / f"part-{plan.number:06d}.csv")
        _put_of_night(ledger, plan, "report.html", report.read_bytes())
        _put_worklist(ledger, plan, model, (listed, unscored, pictures), folder)
        page = report.read_bytes()
    if model.settings.dicom_results:
        _keep_dicom(ledger, plan, (image.object_key for image in merged.images))
    index_sha256 = write_index(ledger, plan.number, merged.index)
    _complete(
        ledger,
        plan,
        merged,
        {
            "index_sha256": index_sha256,
            "files": dict(sorted(digests.items())),
            "scores_sha256": scores_digest,
            **({"skipped": list(skipped)} if skipped else {}),
        },
    )
    night = night_of(plan, merged, model, drift, (page, time.perf_counter() - started))
    _log.info("%s", night.as_text())
    return night


def _skipped(history: History, plan: Plan) -> tuple[int, ...]:
    """Return the earlier plans that a plan does not wait for.

    Raises:
        ArtifactError: another earlier plan is unfinished, and duplicates are known by the earlier.
    """
    if plan.number in history.heads:
        return history.heads[plan.number].skipped
    aside = history.set_aside(store_time(history.ledger).date().isoformat())
    earlier = [number for number in history.unfinished() if number < plan.number]
    before = [number for number in earlier if number not in aside]
    if before:
        raise ArtifactError(
            f"plan {before[0]} comes before plan {plan.number} and is not complete; collect "
            f"plan {before[0]} first"
        )
    return tuple(earlier)


def _not_seen(history: History, plan: Plan, skipped: Sequence[int]) -> dict[tuple[str, str], int]:
    """Count what no shard knows: what could not be listed, and the X-rays of plans set aside."""
    waiting = sum(len(read_plan(history.ledger, number).images) for number in skipped)
    counts = {
        ("left_out", "link_or_folder_unreadable"): plan.num_unreadable,
        ("waiting", "plan_set_aside"): waiting,
    }
    return {kind: count for kind, count in counts.items() if count}


def _write(
    ledger: Ledger, plan: Plan, merged: Merged, model: NightModel, folder: Path, archived: bool
) -> tuple[list[Path], dict[str, Any] | None, Path, dict[str, bytes]]:
    """Write all files of the plan into a folder.

    Returns:
        The files, the drift, the report's path, and the report's pictures by study.
    """
    number = f"{plan.number:06d}"
    shown = frozenset(image.image_key for image, _, _ in most_urgent(merged.images, model))
    files, embeddings, pictures = _write_scores(ledger, plan, merged, shown, folder)
    drift = night_drift(merged, embeddings, model)
    measured = folder / f"drift-{number}.json"
    measured.write_bytes(document_bytes("nightly-drift", drift or {"status": "no_reference"}))
    page = folder / f"report-{number}.html"
    report = replace(night_report(plan, merged, model, drift, pictures), archived=archived)
    scores = folder / f"part-{number}.parquet"
    write_night_report(page, with_timings(report, scores, model.findings[0], merged.score_s))
    shown_cases = {case.study_uid: case.png for case in reversed(report.cases)}
    return [*files, measured, page], drift, page, shown_cases


def _put_worklist(
    ledger: Ledger,
    plan: Plan,
    model: NightModel,
    known: tuple[WorklistScope, Mapping[tuple[str, str], int], Mapping[str, bytes]],
    folder: Path,
) -> None:
    config = model.settings.worklist
    listed, unscored, pictures = known
    entries = worklist(listed.images, end_of(plan.date), config)
    _put_of_night(ledger, plan, "worklist.csv", worklist_csv(entries).encode())
    page = folder / "worklist.html"
    omissions = Omissions(unscored, listed.foreign)
    held = {plan.bundle_digest: model.operating_points}
    write_worklist_page(page, plan.date, entries, config, omissions, pictures, held)
    _put_of_night(ledger, plan, "worklist.html", page.read_bytes())


def _put_of_night(ledger: Ledger, plan: Plan, name: str, data: bytes) -> None:
    """Write a file that later plans of the night replace, unless the plan is complete already.

    A later plan is collected only once this one is complete. So if one wrote the file, either
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


def _complete(ledger: Ledger, plan: Plan, merged: Merged, written: Mapping[str, Any]) -> None:
    statuses = Counter(merged.index.column("status").to_pylist())
    document = {
        "number": plan.number,
        "date": plan.date,
        "bundle_digest": plan.bundle_digest,
        "newest_arrival": max(image.arrived for image in plan.images).isoformat(),
        "counts": dict(sorted(statuses.items())),
        **written,
    }
    key = ledger.plan_key(plan.number, "complete.json")
    if not ledger.create(key, document_bytes("nightly-completion", document)):
        _log.info("plan %d was completed meanwhile by another run", plan.number)


def night_key(ledger: Ledger, plan: Plan | PlanHead, name: str) -> str:
    """Return the key of a file of a night's results."""
    return ledger.key("scores", f"date={plan.date}", name)


def _write_scores(
    ledger: Ledger, plan: Plan, merged: Merged, wanted: frozenset[str], folder: Path
) -> tuple[list[Path], dict[str, npt.NDArray[np.float32]], dict[str, bytes]]:
    """Write scores and rejected objects as files in a folder.

    Returns:
        The files; embeddings by object key, of at most `_MAX_DRIFT_IMAGES` X-rays; those pictures
        by image key that are wanted.
    """
    number = f"{plan.number:06d}"
    names = (f"part-{number}.parquet", f"part-{number}.csv")
    # Image keys are hashes: the smallest are a random choice, and always the same one.
    chosen = sorted(merged.images, key=lambda image: image.image_key)[:_MAX_DRIFT_IMAGES]
    sampled = {image.object_key for image in chosen}
    duplicates = pa.array(sorted(merged.duplicates), pa.string())
    embeddings: dict[str, npt.NDArray[np.float32]] = {}
    pictures: dict[str, bytes] = {}
    with (
        _parquet(folder / names[0], SCORES, "nightly-scores") as parquet,
        _csv(folder / names[1], SCORES.names) as rows,
    ):
        for result in shards_of(ledger, plan):
            counts = pc.invert(pc.is_in(result.scores.column("object_key"), duplicates))
            scores = result.scores.filter(counts)
            parquet.write_table(scores)
            rows.writerows(_lines(scores))
            pictures |= {key: png for key, png in result.pictures.items() if key in wanted}
            for image in result.images.select(["object_key", "embedding"]).to_pylist():
                if image["object_key"] in sampled:
                    embeddings[image["object_key"]] = np.asarray(image["embedding"], np.float32)
    rejected = folder / f"rejected-{number}.csv"
    with _csv(rejected, EXCLUDED.names) as rows:
        rows.writerows([row[name] for name in EXCLUDED.names] for row in merged.excluded)
    return [*(folder / name for name in names), rejected], embeddings, pictures


def _digest_without_timings(scores: Path) -> str:
    """Return the SHA-256 of scores as CSV without their timings: equal for equal nights."""
    digest = hashlib.sha256()
    with scores.open("rb") as lines:
        for line in lines:
            before, *cut = line.rsplit(b",", len(TIMINGS))
            # A line break within a cell leaves lines too short to end in timings.
            digest.update(before + b"\n" if len(cut) == len(TIMINGS) else line)
    return digest.hexdigest()


def _put_files(ledger: Ledger, plan: Plan, files: Sequence[Path]) -> dict[str, str]:
    """Put files into the night's folder; return the SHA-256 of each by name."""
    digests = {}
    for path in files:
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        ledger.store.put_file(night_key(ledger, plan, path.name), path)
    return digests


@contextmanager
def _parquet(path: Path, schema: pa.Schema, kind: str) -> Iterator[pq.ParquetWriter]:
    head = json.dumps({"kind": kind, "provenance": {}, "schema": SCHEMA})
    described = schema.with_metadata({"chexradinet": head})
    with pq.ParquetWriter(path, described, compression="zstd") as writer:
        yield writer


@contextmanager
def _csv(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = CsvWriter(stream)
        writer.writerow(columns)
        yield writer


def _lines(table: pa.Table) -> Iterator[list[Any]]:
    """Yield the rows of a table as CSV has them: nothing for null, `true` and `false`."""
    for batch in table.to_batches(max_chunksize=1024):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield [str(cell).lower() if isinstance(cell, bool) else cell for cell in row]


def _keep_dicom(ledger: Ledger, plan: Plan, object_keys: Iterable[str]) -> None:
    """Take away a plan's DICOM results but for those of these X-rays.

    Others are of duplicates, and of X-rays that a killed run wrote them for and that changed or
    vanished before they were scored again.
    """
    kept = {dicom_folder(ledger, plan, key) for key in object_keys}
    for info in list(ledger.store.list(ledger.key(dicom_start(plan.date, plan.number)))):
        if f"{info.key.rpartition('/')[0]}/" not in kept:
            ledger.store.delete(info.key)
