"""Shards of a plan put together, and the studies on the worklist of its day.

The same X-ray under several names counts once: under the smallest name, and not at all if an
earlier plan scored it with the same model. So the answer does not depend on the order of shards.

The list of a day holds the X-rays of the day's plans, those of earlier plans that were completed on
it, and of all others those whose wait reaches the cap before the next list is read and did not
before the list that was read last. So each study is on a list when it is new, and once more before
the cap, whether it has been read or not: nothing here knows that.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chexradinet.artifacts import record_of
from chexradinet.config.nightly import WorklistConfig
from chexradinet.errors import ArtifactError, SchemaError, StoreNotFoundError
from chexradinet.nightly import (
    DUPLICATE,
    INDEX,
    SCORED,
    Excluded,
    ShardResult,
    table_from,
    unpack,
)
from chexradinet.nightly.history import History, PlanHead, read_index
from chexradinet.nightly.ledger import Ledger, Plan, read_plan
from chexradinet.records import RejectReason
from chexradinet.reports.nightly import WaitingImage

_XRAY_SUFFIXES = frozenset({"dcm", "dic", "dicom", "ima", "img", "jpeg", "jpg", "png"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NightImage:
    """One scored X-ray: a row of the table of images, without its embedding."""

    image_key: str
    object_key: str
    etag: str
    study_uid: str
    patient_key: str
    arrived: datetime
    view: str
    age_years: float | None
    sex: str
    manufacturer: str
    accession: str
    patient_id: str
    study_date: str
    quality: str
    out_of_distribution: bool | None
    out_of_distribution_score: float | None
    pixel_mean: float
    pixel_std: float
    probabilities: tuple[float, ...]
    """Calibrated, in the order of the model's findings."""
    flags: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of every object of a plan."""

    images: tuple[NightImage, ...]
    """Scored X-rays that count, in order of their object keys."""
    excluded: tuple[dict[str, Any], ...]
    """Rows of the table of excluded objects, duplicates among them, in order of their keys."""
    duplicates: frozenset[str]
    """Object keys whose scores do not count."""
    index: pa.Table
    """A row per object: `key`, `etag`, `image_key`, `status`."""
    score_s: float
    """Seconds that the shards took, added up."""


def read_shard(ledger: Ledger, plan: Plan, shard: int) -> ShardResult | None:
    """Read the results of a shard; None if it was not scored yet.

    Raises:
        ArtifactError: it is damaged, or was scored for another plan of this number.
    """
    key = ledger.shard_key(plan.number, shard)
    try:
        result = unpack(ledger.store.get(key), key)
    except StoreNotFoundError:
        return None
    tables = (result.images, result.rejected)
    names = sorted(key for table in tables for key in table.column("object_key").to_pylist())
    if result.plan_sha256 != plan.digest or names != [image.key for image in plan.shard(shard)]:
        raise ArtifactError(
            f"{key} holds results of another plan {plan.number} than the plan.json beside it: the "
            "ledger was restored in part, or a plan was deleted; restore the folder as a whole, as "
            "docs/operations.md says under 'Restore from a lost bucket', or move this shard away "
            "to have it scored"
        )
    return result


def shards_of(ledger: Ledger, plan: Plan) -> Iterator[ShardResult]:
    """Yield the results of each shard of a plan, in order.

    Raises:
        ArtifactError: a shard was not scored yet, is damaged, or is of another plan.
    """
    for shard in range(plan.num_shards):
        result = read_shard(ledger, plan, shard)
        if result is None:
            raise ArtifactError(
                f"shard {shard} of plan {plan.number} is not scored; run `score` for it, or the "
                "whole nightly run again"
            )
        yield result


def merge(plan: Plan, history: History, skipped: Collection[int] = ()) -> Merged:
    """Combine a plan's shards.

    Args:
        plan: A plan whose shards are all scored.
        history: Past plans; an X-ray that one of them scored with the same model is a duplicate.
        skipped: Earlier plans that this one does not wait for.

    Raises:
        ArtifactError: a shard is missing or damaged, or an earlier plan's index is.
    """
    images: list[NightImage] = []
    excluded: list[dict[str, Any]] = []
    score_s = 0.0
    for result in shards_of(history.ledger, plan):
        images += _night_images(result.images)
        excluded += result.rejected.to_pylist()
        score_s += result.wall_s
    images.sort(key=lambda image: image.object_key)
    earlier = _earlier_scores(plan, history, skipped, {image.image_key for image in images})
    kept, duplicates = _split(images, earlier)
    reason = RejectReason.DUPLICATE.value
    excluded += [
        Excluded(image.object_key, DUPLICATE, reason, detail).row(plan.number)
        for image, detail in duplicates
    ]
    excluded.sort(key=lambda row: str(row["object_key"]))
    return Merged(
        images=tuple(kept),
        excluded=tuple(excluded),
        duplicates=frozenset(image.object_key for image, _ in duplicates),
        index=_index(plan, images, excluded),
        score_s=score_s,
    )


def _earlier_scores(
    plan: Plan, history: History, skipped: Collection[int], image_keys: Collection[str]
) -> dict[str, int]:
    """Return image key to plan of those X-rays that an earlier plan scored with the same model."""
    earlier = [
        head.number
        for head in history.before(plan.number, skipped)
        if head.bundle_digest == plan.bundle_digest
    ]
    wanted = pa.array(sorted(image_keys), pa.string())
    found: dict[str, int] = {}
    for index in history.indexes(earlier):
        scored = index.filter((pc.field("status") == SCORED) & pc.field("image_key").isin(wanted))
        for row in scored.select(["image_key", "plan"]).to_pylist():
            found[row["image_key"]] = min(row["plan"], found.get(row["image_key"], row["plan"]))
    return found


def _merged_before(history: History, plan: Plan) -> list[NightImage]:
    """Return the X-rays that count of a plan that is complete."""
    scored = _keys(history, plan, SCORED)
    return [
        image
        for result in shards_of(history.ledger, plan)
        for image in _night_images(result.images)
        if image.object_key in scored
    ]


def unscored_files(
    history: History, earlier: Iterable[Plan], merged: Merged
) -> dict[tuple[str, str], int]:
    """Count the files without a score by status and reason: a reader of the list sees none of them.

    A file counts by its last status, so one that was postponed and then scored does not count; nor
    does a duplicate, as its scores are elsewhere, nor what is no X-ray by name and content, such as
    `readme.txt`.

    Args:
        history: Past plans.
        earlier: Complete plans whose X-rays are on the same worklist, in order of their numbers.
        merged: What became of the last plan.

    Raises:
        ArtifactError: a shard or an index is missing or damaged.
    """
    reasons: dict[str, tuple[str, str]] = {}
    for plan in earlier:
        rows = [
            row for result in shards_of(history.ledger, plan) for row in result.rejected.to_pylist()
        ]
        _count_last(reasons, rows, _keys(history, plan, SCORED, DUPLICATE))
    rows = [row for row in merged.excluded if row["status"] != DUPLICATE]
    _count_last(reasons, rows, {image.object_key for image in merged.images} | merged.duplicates)
    xrays = (why for key, why in reasons.items() if not _is_other_file(key, why[1]))
    return dict(sorted(Counter(xrays).items()))


def _is_other_file(object_key: str, reason: str) -> bool:
    """Tell whether neither content nor name is that of an X-ray; DICOM names often end in a UID."""
    suffix = object_key.rpartition("/")[2].rpartition(".")[2].lower()
    is_named = "." in object_key and suffix.isalpha() and suffix not in _XRAY_SUFFIXES
    return is_named and reason == RejectReason.NOT_AN_IMAGE


def _count_last(
    reasons: dict[str, tuple[str, str]], excluded: Iterable[dict[str, Any]], scored: Iterable[str]
) -> None:
    """Add a plan's files without a score, and remove those that it scored, or another one did."""
    for row in excluded:
        reasons[str(row["object_key"])] = (str(row["status"]), str(row["reason"]))
    for key in scored:
        reasons.pop(key, None)


def _keys(history: History, plan: Plan, *statuses: str) -> set[str]:
    """Return the object keys of a complete plan that have one of these statuses."""
    index = read_index(history.ledger, plan.number, history.heads[plan.number].index_sha256)
    return set(index.filter(pc.field("status").isin(statuses)).column("key").to_pylist())


def _night_images(table: pa.Table) -> Iterator[NightImage]:
    """Yield the rows of a shard's table of images, without the embeddings."""
    for row in table.drop_columns(["embedding"]).to_pylist():
        yield record_of(NightImage, row)


def _split(
    images: Sequence[NightImage], earlier: Mapping[str, int]
) -> tuple[list[NightImage], list[tuple[NightImage, str]]]:
    """Return the X-rays that count, and the others with a note on where their scores are."""
    kept: dict[str, NightImage] = {}
    duplicates = []
    for image in images:
        if image.image_key in earlier:
            duplicates.append((image, f"scored in plan {earlier[image.image_key]}"))
        elif image.image_key in kept:
            duplicates.append((image, f"same X-ray as {kept[image.image_key].object_key}"))
        else:
            kept[image.image_key] = image
    return list(kept.values()), duplicates


def _index(
    plan: Plan, images: Sequence[NightImage], excluded: Sequence[Mapping[str, Any]]
) -> pa.Table:
    image_keys = {image.object_key: image.image_key for image in images}
    statuses = dict.fromkeys(image_keys, SCORED)
    statuses |= {str(row["object_key"]): row["status"] for row in excluded}
    rows = [
        {
            "key": image.key,
            "etag": image.etag,
            "image_key": image_keys.get(image.key, ""),
            "status": statuses[image.key],
        }
        for image in plan.images
    ]
    return table_from(rows, INDEX)


@dataclass(frozen=True, kw_only=True)
class WorklistScope:
    """What is on the worklist of a day."""

    images: tuple[WaitingImage, ...]
    """Scored X-rays."""
    earlier: tuple[Plan, ...]
    """Plans before the one that is being collected whose X-rays are all on the list."""
    foreign: tuple[int, ...]
    """Numbers of plans with X-rays for the list that another release stored in its own way."""


def end_of(day: str) -> datetime:
    """Return the end of a day `YYYY-MM-DD`, in UTC."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1)


def studies_of(
    history: History, plan: Plan, merged: Merged, skipped: Collection[int], config: WorklistConfig
) -> WorklistScope:
    """Return the list of the day of a plan that is being collected; earlier plans may be skipped.

    An X-ray that was scored again counts by its last scores.
    """
    found: dict[str, WaitingImage] = {}
    earlier, foreign = [], []
    past = [head for head in history.before(plan.number, skipped) if head.number < plan.number]
    window = _newly_due(past, plan, config)
    for head in past:
        is_new = head.date == plan.date or head.completed_on >= plan.date
        if not is_new and head.newest_arrival <= window[0]:
            continue
        other = read_plan(history.ledger, head.number)
        try:
            scored = _merged_before(history, other)
        except SchemaError as error:
            # This night is not to fail over a list that its X-rays were on already.
            _log.warning("plan %d is left off the worklist: %s", head.number, error)
            foreign.append(head.number)
            continue
        earlier += [other] if is_new else []
        images = [image for image in scored if is_new or window[0] < image.arrived <= window[1]]
        found |= _by_key(images, other)
    found |= _by_key(merged.images, plan)
    return WorklistScope(
        images=tuple(found.values()), earlier=tuple(earlier), foreign=tuple(foreign)
    )


def _newly_due(
    past: Sequence[PlanHead], plan: Plan, config: WorklistConfig
) -> tuple[datetime, datetime]:
    """Return after when, and until when, a study arrived that is due on this list for the first.

    If no night was scored before, nothing is.
    """
    last = max((head.date for head in past if head.date < plan.date), default=plan.date)
    before = timedelta(hours=config.max_wait_h - config.interval_h)
    return end_of(last) - before, end_of(plan.date) - before


def _by_key(images: Sequence[NightImage], plan: Plan) -> dict[str, WaitingImage]:
    return {image.image_key: _waiting(image, plan) for image in images}


def _waiting(image: NightImage, plan: Plan) -> WaitingImage:
    """Return a scored X-ray as the worklist needs it.

    Only findings whose scores are probabilities give priority; the others are not assessed.
    """
    scores = zip(plan.findings, image.probabilities, strict=True)
    return WaitingImage(
        study_uid=image.study_uid,
        arrived=image.arrived,
        probabilities={finding: score for finding, score in scores if finding in plan.calibrated},
        flagged=[name for name, flag in zip(plan.findings, image.flags, strict=True) if flag],
        not_assessed=[finding for finding in plan.findings if finding not in plan.calibrated],
        model_digest=plan.bundle_digest,
        accession=image.accession,
        patient_id=image.patient_id,
        study_date=image.study_date,
        file=image.object_key if image.study_uid == image.image_key else "",
        notes=[
            *(code for code in image.quality.split(";") if code),
            *(("out_of_distribution",) if image.out_of_distribution else ()),
        ],
    )
