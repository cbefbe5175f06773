"""A plan in figures: for report, drift and Pushgateway; what names no X-ray there."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexradinet.evaluation.drift import FALSE_ALARMS_PER_NIGHT, drift
from chexradinet.evaluation.reference import Population
from chexradinet.monitoring import NightlyTelemetry, drift_ratios
from chexradinet.nightly import DUPLICATE, NOT_SCORED, REJECTED, TIMINGS, Addresses
from chexradinet.nightly.history import read_history
from chexradinet.nightly.ledger import Plan, open_ledger, store_time
from chexradinet.nightly.merge import Merged, NightImage
from chexradinet.nightly.model import NightModel
from chexradinet.nightly.plan import drop_taken, inbox_images
from chexradinet.records import RejectReason
from chexradinet.reports.nightly import FlaggedCase, NightReport, OutsideXRay

_UNREADABLE = {"status": "left_out", "reason": "link_or_folder_unreadable"}


@dataclass(frozen=True, kw_only=True)
class Night:
    """What a complete plan came to, or all plans of a run together."""

    number: int
    """Number of the plan; of several, the last."""
    date: str
    model_digest: str
    model_round: int
    num_planned: int
    num_scored: int
    excluded: Mapping[str, Mapping[str, int]]
    """`rejected`, `duplicate`, `postponed` and `vanished` to reason to objects."""
    flagged: Mapping[str, int]
    """Finding to X-rays at or above its threshold."""
    drift: Mapping[str, Any] | None
    """As `evaluation.drift` gives it; None if the model has no reference."""
    ood_fraction: float | None
    """Part of the scored X-rays, in [0, 1]; None if the model cannot tell."""
    score_s: float
    """Seconds that the shards took, added up."""
    collect_s: float
    report: bytes
    """The HTML report."""

    def as_text(self) -> str:
        """Return the outcome as one sentence."""
        without = {status: sum(found.values()) for status, found in self.excluded.items()}
        said = ", ".join(f"{num} {status}" for status, num in sorted(without.items())) or "none"
        return (
            f"plan {self.number}: {self.num_scored} of {self.num_planned} X-rays scored, "
            f"without a score: {said}"
        )


def combine(nights: Sequence[Night]) -> Night:
    """Return what the plans of a run came to: counts and times added up, the rest of the last.

    Drift is the last one that was measured, since a small plan cannot be compared.
    """
    excluded: dict[str, Counter[str]] = {}
    flagged: Counter[str] = Counter()
    for night in nights:
        flagged.update(night.flagged)
        for status, reasons in night.excluded.items():
            excluded.setdefault(status, Counter()).update(reasons)
    judged = [night for night in nights if night.ood_fraction is not None]
    measured = [night.drift for night in nights if night.drift and night.drift["status"] == "ok"]
    num_judged = sum(night.num_scored for night in judged)
    return replace(
        nights[-1],
        num_planned=sum(night.num_planned for night in nights),
        num_scored=sum(night.num_scored for night in nights),
        excluded=excluded,
        flagged=dict(flagged),
        drift=[nights[-1].drift, *measured][-1],
        ood_fraction=sum((n.ood_fraction or 0.0) * n.num_scored for n in judged) / num_judged
        if num_judged
        else None,
        score_s=sum(night.score_s for night in nights),
        collect_s=sum(night.collect_s for night in nights),
    )


def night_of(
    plan: Plan,
    merged: Merged,
    model: NightModel,
    drift: Mapping[str, Any] | None,
    made: tuple[bytes, float],
) -> Night:
    """Return what a plan came to.

    Args:
        plan: The plan that was collected.
        merged: What became of its X-rays.
        model: The plan's model.
        drift: What `night_drift` returned.
        made: The HTML report, and the seconds that collecting took.
    """
    outside, num_scored = _num_outside(merged), len(merged.images)
    excluded: dict[str, Counter[str]] = {}
    for row in merged.excluded:
        excluded.setdefault(str(row["status"]), Counter())[str(row["reason"])] += 1
    return Night(
        number=plan.number,
        date=plan.date,
        model_digest=plan.bundle_digest,
        model_round=model.info.round,
        num_planned=len(plan.images),
        num_scored=num_scored,
        excluded=excluded,
        flagged=num_flagged(merged, model.findings),
        drift=drift,
        ood_fraction=None if outside is None or not num_scored else outside / num_scored,
        score_s=merged.score_s,
        collect_s=made[1],
        report=made[0],
    )


def num_flagged(merged: Merged, findings: Sequence[str]) -> dict[str, int]:
    """Return how many X-rays are flagged, by finding; those with 0 too."""
    return {
        finding: sum(image.flags[column] for image in merged.images)
        for column, finding in enumerate(findings)
    }


def _num_outside(merged: Merged) -> int | None:
    """Return how many X-rays the model was not made for, None if it cannot tell."""
    known = [i.out_of_distribution for i in merged.images if i.out_of_distribution is not None]
    return sum(known) if known or not merged.images else None


def most_urgent(
    images: Sequence[NightImage], model: NightModel
) -> list[tuple[NightImage, str, float]]:
    """Return the flagged X-rays that the report shows, the most urgent first.

    Returns:
        Each with its most urgent flagged finding and the probability of that.
    """
    ranked = []
    for image in images:
        scored = zip(model.findings, image.probabilities, image.flags, strict=True)
        flagged = [
            (-model.settings.worklist.urgency_of(finding) * probability, finding, probability)
            for finding, probability, flag in scored
            if flag
        ]
        if flagged:
            urgency, finding, probability = min(flagged)
            ranked.append((urgency, image.object_key, (image, finding, probability)))
    ranked.sort(key=itemgetter(0, 1))
    return [found for _, _, found in ranked[: model.settings.report_cases]]


def night_drift(
    merged: Merged, embeddings: Mapping[str, npt.NDArray[np.float32]], model: NightModel
) -> dict[str, Any] | None:
    """Compare a plan's X-rays with the model's reference, None if it has none.

    Args:
        merged: What became of the plan.
        embeddings: By object key; X-rays without one take no part.
        model: The model.
    """
    images = [image for image in merged.images if image.object_key in embeddings]
    if model.reference is None or not images:
        return None
    # Numbered as they come, so that nothing depends on how patients are coded.
    patients: dict[str, int] = {}
    night = Population(
        findings=model.findings,
        probabilities=np.array([image.probabilities for image in images]),
        embeddings=np.stack([embeddings[image.object_key] for image in images]),
        patient_ids=[patients.setdefault(i.patient_key, len(patients)) for i in images],
        metadata={
            "view": [image.view for image in images],
            "age": [image.age_years for image in images],
            "sex": [image.sex for image in images],
            "manufacturer": [image.manufacturer for image in images],
        },
        image_statistics={
            "mean": [image.pixel_mean for image in images],
            "std": [image.pixel_std for image in images],
        },
    )
    return drift(model.reference, night)


def night_report(
    plan: Plan,
    merged: Merged,
    model: NightModel,
    found_drift: Mapping[str, Any] | None,
    pictures: Mapping[str, bytes],
) -> NightReport:
    """Return what the report shows, without timings.

    Args:
        plan: The plan that was scored.
        merged: What became of its X-rays.
        model: The model.
        found_drift: What `night_drift` returned.
        pictures: PNG files by image key.
    """
    images, findings = merged.images, model.findings
    thresholds = {finding: model.fitted[finding]["threshold"] for finding in findings}
    known = {} if model.reference is None else model.reference.document
    distributions = known.get("distributions", {})
    return NightReport(
        date=plan.date,
        plan=plan.number,
        model_digest=plan.bundle_digest,
        num_planned=len(plan.images),
        num_scored=len(images),
        num_studies=len({image.study_uid for image in images}),
        excluded=(*merged.excluded, *[_UNREADABLE] * plan.num_unreadable),
        probabilities={
            finding: [image.probabilities[column] for image in images]
            for column, finding in enumerate(findings)
        },
        num_flagged=num_flagged(merged, findings),
        thresholds=thresholds,
        operating_points=model.operating_points,
        drift=found_drift,
        reference={
            finding: distributions[f"score:{finding}"]
            for finding in findings
            if f"score:{finding}" in distributions
        },
        num_out_of_distribution=_num_outside(merged),
        ood_rule=known.get("ood", {}).get("rule", ""),
        outside=_outside(images),
        quality=dict(
            sorted(Counter(code for i in images for code in i.quality.split(";") if code).items())
        ),
        cases=_cases(merged, model, thresholds, pictures),
    )


def _outside(images: Iterable[NightImage]) -> list[OutsideXRay]:
    """Return the X-rays that are out of distribution, the farthest first."""
    found = [
        OutsideXRay(study_uid=image.study_uid, distance=image.out_of_distribution_score or 0.0)
        for image in images
        if image.out_of_distribution
    ]
    return sorted(found, key=lambda one: (-one.distance, one.study_uid))


def with_timings(report: NightReport, scores: Path, finding: str, score_s: float) -> NightReport:
    """Return the report with what its X-rays took.

    Args:
        report: Without timings.
        scores: The table of scores, as Parquet.
        finding: Any of the model's: its row of an X-ray is the one that is read.
        score_s: Seconds that the shards took, added up.
    """
    table = pq.read_table(scores, columns=list(TIMINGS), filters=pc.field("finding") == finding)
    found = {}
    for name in TIMINGS:
        seconds = table.column(name).drop_null().to_numpy()
        if len(seconds):
            found[name.removesuffix("_s")] = (
                float(seconds.sum()),
                float(np.median(seconds)),
                float(seconds.max()),
            )
    return replace(report, timings=found, score_s=score_s)


def _cases(
    merged: Merged,
    model: NightModel,
    thresholds: Mapping[str, float | None],
    pictures: Mapping[str, bytes],
) -> list[FlaggedCase]:
    return [
        FlaggedCase(
            png=pictures[image.image_key],
            study_uid=image.study_uid,
            finding=finding,
            probability=probability,
            threshold=thresholds[finding] or 0.0,
        )
        for image, finding, probability in most_urgent(merged.images, model)
        if image.image_key in pictures
    ]


def night_telemetry(addresses: Addresses, night: Night | None) -> NightlyTelemetry:
    """Return the figures of a run.

    Args:
        addresses: Inbox and results.
        night: What was collected last; None if there was nothing new.
    """
    age_s = oldest_unscored_age_s(addresses)
    if night is None:
        return NightlyTelemetry(images_scored=0, rejected={}, oldest_unscored_age_seconds=age_s)
    return NightlyTelemetry(
        stage_seconds={"score": night.score_s, "collect": night.collect_s},
        model_digest=night.model_digest,
        model_round=night.model_round,
        images_scored=night.num_scored,
        rejected=_rejected(night.excluded),
        flagged=dict(night.flagged),
        oldest_unscored_age_seconds=age_s,
        drift=_drift(night.drift),
        out_of_distribution_ratio=night.ood_fraction,
    )


def oldest_unscored_age_s(addresses: Addresses) -> float:
    """Return the age of the oldest object that no complete plan has done, in seconds; 0 for none.

    By the store's clock; an object with a time ahead of it is 0 seconds old.
    """
    ledger = open_ledger(addresses.results_uri)
    now = store_time(ledger)
    waiting = {image.key: image for image in inbox_images(addresses.inbox_uri, now)}
    drop_taken(waiting, read_history(ledger), [])
    oldest = min((image.arrived for image in waiting.values()), default=now)
    return max(0.0, (now - oldest).total_seconds())


def _rejected(excluded: Mapping[str, Mapping[str, int]]) -> dict[RejectReason, int]:
    """Return objects without a score by reason, but for those that changed or vanished."""
    counted: dict[RejectReason, int] = {}
    for status in (REJECTED, DUPLICATE, NOT_SCORED):
        for reason, num in excluded.get(status, {}).items():
            counted[RejectReason(reason)] = counted.get(RejectReason(reason), 0) + num
    return counted


def _drift(found: Mapping[str, Any] | None) -> dict[str, float]:
    if found is None or found["status"] != "ok":
        return {}
    p_values = {name: values["p_value"] for name, values in found["comparisons"].items()}
    return drift_ratios(p_values, FALSE_ALARMS_PER_NIGHT / len(p_values))
