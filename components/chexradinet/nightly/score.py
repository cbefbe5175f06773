"""Scoring a shard of a plan: decode beside the network, one forward pass, one object of results.

A shard that was killed leaves nothing and is done again; a shard that is there is left alone. So
each X-ray is scored into exactly one object, however often and by however many this runs.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from chexradinet.config import require
from chexradinet.config.nightly import ScoreConfig
from chexradinet.errors import RejectedImageError, StoreConflictError
from chexradinet.ingest.decoding import decode_in_order
from chexradinet.model.inference import predict_folded
from chexradinet.nightly.addresses import Addresses
from chexradinet.nightly.dicom import write_dicom
from chexradinet.nightly.ledger import Ledger, Plan, PlannedImage, open_ledger, read_plan
from chexradinet.nightly.outcome import ShardOutcome
from chexradinet.nightly.read import REJECTED, Excluded, Reading, XRay, read_xray
from chexradinet.nightly.records import NightCase, NightFinding, urgency
from chexradinet.nightly.rows import (
    cases_of,
    image_row,
    picture,
    score_rows,
)
from chexradinet.nightly.scorer import Scorer, open_scorer
from chexradinet.nightly.tables import (
    IMAGES,
    SCORES,
    ShardResult,
    pack,
    table_from,
)
from chexradinet.nightly.tables import REJECTED as REJECTED_TABLE

_log = logging.getLogger(__name__)


@dataclass
class _Collected:
    """Rows of a shard so far."""

    scores: list[pa.Table] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    urgent: list[tuple[float, str, NightCase, NightFinding]] = field(default_factory=list)
    """The most urgent flagged X-rays so far, for the report's pictures."""


def score(addresses: Addresses, number: int, shard: int, config: ScoreConfig) -> ShardOutcome:
    """Score a shard of a plan, unless it was done before.

    Args:
        addresses: Inbox, models and results.
        number: Of the plan.
        shard: In [0, shards of the plan).
        config: Device and processes; results do not depend on it.

    Raises:
        ConfigError: the plan has no such shard.
        ArtifactError: the model was changed.
        MismatchError: the model is for something else than the plan.
        StoreError: the inbox cannot be read or results cannot be written.
    """
    ledger = open_ledger(addresses.results_uri)
    plan = read_plan(ledger, number)
    if is_scored(ledger, plan, shard):
        return ShardOutcome(status="done_before")
    scorer = open_scorer(addresses, plan, config)
    return score_shard(ledger, plan, shard, scorer, config)


def is_scored(ledger: Ledger, plan: Plan, shard: int) -> bool:
    """Tell whether a shard's results are there.

    Raises:
        ConfigError: the plan has no such shard.
    """
    require(0 <= shard < plan.num_shards, "shard", shard, f"in [0, {plan.num_shards})")
    return ledger.store.exists(ledger.shard_key(plan.number, shard))


def score_shard(
    ledger: Ledger, plan: Plan, shard: int, scorer: Scorer, config: ScoreConfig
) -> ShardOutcome:
    """Score a shard with a model that is open already; see `score`."""
    if is_scored(ledger, plan, shard):
        return ShardOutcome(status="done_before")
    started = time.perf_counter()
    images = plan.shard(shard)
    collected = _Collected()
    for batch in _batches(_read(plan, images, scorer, config), scorer.settings.batch_size):
        _exclude(collected, plan, [one for one in batch if isinstance(one, Excluded)])
        xrays = [one for one in batch if isinstance(one, XRay)]
        if xrays:
            _score_batch(collected, ledger, plan, scorer, xrays)
    result = _result(collected, time.perf_counter() - started)
    try:
        ledger.store.create(ledger.shard_key(plan.number, shard), pack(result))
    except StoreConflictError:
        _log.info("shard %d of plan %d was done meanwhile by another run", shard, plan.number)
        return ShardOutcome(status="done_before")
    outcome = ShardOutcome(
        status="scored", num_scored=len(collected.images), num_excluded=len(collected.rejected)
    )
    _log.info("shard %d of plan %d: %s", shard, plan.number, outcome)
    return outcome


def _read(
    plan: Plan, images: Sequence[PlannedImage], scorer: Scorer, config: ScoreConfig
) -> Iterator[XRay | Excluded]:
    preprocessing = scorer.info.preprocessing
    reading = Reading(plan.inbox_uri, preprocessing, scorer.settings, plan.salt)
    outcomes = decode_in_order(images, partial(read_xray, reading), config.num_decoders)
    for image, outcome in zip(images, outcomes, strict=True):
        if isinstance(outcome, RejectedImageError):
            yield Excluded(
                object_key=image.key, status=REJECTED, reason=str(outcome.reason),
                detail=outcome.detail,
            )  # fmt: skip
        else:
            yield outcome


def _batches(
    outcomes: Iterator[XRay | Excluded], batch_size: int
) -> Iterator[list[XRay | Excluded]]:
    """Yield outcomes in order, with at most so many X-rays at once."""
    batch: list[XRay | Excluded] = []
    num_xrays = 0
    for outcome in outcomes:
        batch.append(outcome)
        num_xrays += isinstance(outcome, XRay)
        if num_xrays == batch_size:
            yield batch
            batch, num_xrays = [], 0
    if batch:
        yield batch


def _exclude(collected: _Collected, plan: Plan, excluded: Sequence[Excluded]) -> None:
    for one in excluded:
        collected.rejected.append(
            {
                "object_key": one.object_key,
                "status": one.status,
                "reason": one.reason,
                "detail": one.detail,
                "plan": plan.number,
            }
        )


def _score_batch(
    collected: _Collected,
    ledger: Ledger,
    plan: Plan,
    scorer: Scorer,
    xrays: Sequence[XRay],
) -> None:
    started = time.perf_counter()
    pixels = np.stack([xray.pixels for xray in xrays])
    found = predict_folded(scorer.network, pixels, np.arange(len(xrays)))
    passed = time.perf_counter()
    cases = cases_of(scorer, xrays, found)
    forward_s = (passed - started) / len(xrays)
    regions_s = (time.perf_counter() - passed) / len(xrays)
    settings = scorer.settings
    rows: list[dict[str, Any]] = []
    for xray, case, embedding in zip(xrays, cases, found.embedding, strict=True):
        image = plan.image(case.object_key)
        seconds = {
            "read_s": xray.read_s,
            "decode_s": xray.decode_s,
            "forward_s": forward_s,
            "regions_s": regions_s,
        }
        if settings.dicom_results:
            writing = time.perf_counter()
            write_dicom(ledger, plan, image, (case, scorer))
            seconds["dicom_s"] = time.perf_counter() - writing
        rows += score_rows(case, plan.number, seconds)
        collected.images.append(image_row(xray, case, image, embedding))
        first = urgency(case, settings)
        if first is not None:
            collected.urgent.append((-first[0], case.object_key, case, first[1]))
    collected.scores.append(table_from(rows, SCORES))
    collected.urgent = sorted(collected.urgent, key=itemgetter(0, 1))[: settings.report_cases]


def _result(collected: _Collected, wall_s: float) -> ShardResult:
    return ShardResult(
        scores=pa.concat_tables([SCORES.empty_table(), *collected.scores]).combine_chunks(),
        rejected=table_from(collected.rejected, REJECTED_TABLE),
        images=table_from(collected.images, IMAGES),
        wall_s=wall_s,
        pictures={case.image_key: picture(case, found) for _, _, case, found in collected.urgent},
    )
