"""What a complete plan came to, in numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chexradinet.nightly.ledger import Plan
from chexradinet.nightly.merge import Merged
from chexradinet.nightly.model import NightModel


@dataclass(frozen=True, kw_only=True)
class ShardOutcome:
    """What came of a shard."""

    status: str
    """`scored`, or `done_before` if its results were there already."""
    num_scored: int = 0
    num_excluded: int = 0


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
        model: The model.
        drift: As `evaluation.drift` gives it; None if the model has no reference.
        made: The HTML report, and the seconds that collecting took.
    """
    outside, num_scored = num_outside(merged), len(merged.images)
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


def num_outside(merged: Merged) -> int | None:
    """Return how many X-rays the model was not made for, None if it cannot tell."""
    known = [i.out_of_distribution for i in merged.images if i.out_of_distribution is not None]
    return sum(known) if known or not merged.images else None
