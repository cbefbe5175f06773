"""A night's HTML report: what was scored, what was not and why, what stands out, how long it took.

Everything but the section on timings is the same, byte for byte, when a killed night is finished by
another run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chexradinet.reports.page import write_page
from chexradinet.reports.plots import score_histograms

NOTICE = (
    "For research and for ordering a worklist, not for diagnosis. A score is not a diagnosis; a "
    "low score does not rule out disease. Nightly scoring is not emergency triage."
)
_MAX_LISTED = 200


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
    """Finding to scores of all scored X-rays; calibrated probabilities if it has a threshold."""
    num_flagged: Mapping[str, int]
    """Finding to flagged X-rays."""
    thresholds: Mapping[str, float | None]
    """Finding to operating threshold; a finding without one is not assessed."""
    operating_points: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """Finding to `sensitivity` and `specificity` of its threshold on the test split, if known."""
    drift: Mapping[str, Any] | None
    """What `drift` returned; None if the model has no reference."""
    reference: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Finding to its distribution in the reference."""
    num_out_of_distribution: int | None = None
    """None if the model has no reference."""
    ood_rule: str = ""
    """Distance above which an X-ray is flagged as unlike, and how often by chance."""
    outside: Sequence[OutsideXRay] = ()
    """X-rays unlike those that the model was calibrated on, the farthest first."""
    quality: Mapping[str, int] = field(default_factory=dict)
    """Quality code to scored X-rays that have it."""
    cases: Sequence[FlaggedCase] = ()
    """The most urgent flagged X-rays."""
    archived: bool = False
    """Whether DICOM results are sent to an archive; the page gets what came of it afterwards."""
    timings: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """What took time to its seconds: all together, the median and the longest of an X-ray."""
    score_s: float = 0.0
    """Seconds that the shards took, added up."""

    @property
    def assessed(self) -> list[str]:
        """Findings with an operating threshold."""
        return [name for name in self.probabilities if self.thresholds[name] is not None]

    @property
    def not_assessed(self) -> list[str]:
        """Findings without an operating threshold: their scores are not probabilities."""
        return [name for name in self.probabilities if self.thresholds[name] is None]


def write_night_report(path: Path, report: NightReport) -> None:
    """Write the report as one self-contained HTML file."""
    counts = Counter((str(row["status"]), str(row["reason"])) for row in report.excluded)
    write_page(
        path,
        "nightly",
        report=report,
        notice=NOTICE,
        excluded=sorted(counts.items()),
        outside=report.outside[:_MAX_LISTED],
        num_more=max(0, len(report.outside) - _MAX_LISTED),
        histograms=score_histograms(report.probabilities, report.reference)
        if report.num_scored
        else None,
    )
