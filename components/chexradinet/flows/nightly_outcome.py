"""What a complete plan came to, in numbers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chexradinet.flows.ledger import Plan
from chexradinet.flows.nightly_merge import Merged
from chexradinet.flows.nightly_model import Scorer
from chexradinet.flows.nightly_summary import num_flagged, num_outside


@dataclass(frozen=True, kw_only=True)
class Night:
    """What a complete plan came to."""

    number: int
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
    """As `results.drift` gives it; None where the model has no reference."""
    ood_fraction: float | None
    """Part of the scored X-rays, in [0, 1]; None where the model cannot tell."""
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


def night_of(
    plan: Plan,
    merged: Merged,
    scorer: Scorer,
    drift: Mapping[str, Any] | None,
    made: tuple[bytes, float],
) -> Night:
    """Return what a plan came to.

    Args:
        plan: That was collected.
        merged: What became of its X-rays.
        scorer: The model.
        drift: As `results.drift` gives it; None where the model has no reference.
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
        model_round=scorer.bundle.info.round,
        num_planned=len(plan.images),
        num_scored=num_scored,
        excluded=excluded,
        flagged=num_flagged(merged, scorer.findings),
        drift=drift,
        ood_fraction=None if outside is None or not num_scored else outside / num_scored,
        score_s=merged.score_s,
        collect_s=made[1],
        report=made[0],
    )
