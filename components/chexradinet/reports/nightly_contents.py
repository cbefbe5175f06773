"""What a night's report shows: plain records, filled from what became of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FlaggedCase:
    """One X-ray of the report's pictures."""

    png: bytes
    study_uid: str
    finding: str
    probability: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideXRay:
    """One scored X-ray that is out of distribution."""

    study_uid: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class NightReport:
    """What the report of a plan shows."""

    date: str
    plan: int
    model_digest: str
    num_planned: int
    num_scored: int
    num_studies: int
    excluded: Sequence[Mapping[str, Any]]
    """Rows of the table of rejected objects; the report counts them, and names none."""
    probabilities: Mapping[str, Sequence[float]]
    """Finding to calibrated probabilities of all scored X-rays."""
    num_flagged: Mapping[str, int]
    """Finding to flagged X-rays."""
    thresholds: Mapping[str, float | None]
    """Finding to operating threshold."""
    drift: Mapping[str, Any] | None
    """What `drift` returned; None where the model has no reference."""
    reference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Finding to its distribution in the reference."""
    num_out_of_distribution: int | None = None
    """None where the model has no reference."""
    ood_rule: str = ""
    """Beyond which distance an X-ray is flagged as unlike, and how often by chance."""
    outside: Sequence[OutsideXRay] = ()
    """X-rays unlike those that the model was calibrated on, the farthest first."""
    quality: Mapping[str, int] = field(default_factory=dict)
    """Quality code to scored X-rays that have it."""
    cases: Sequence[FlaggedCase] = ()
    timings: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """What took time to its seconds: all together, the median and the longest of an X-ray."""
    score_s: float = 0.0
    """Seconds that the shards took, added up."""
