"""A night's HTML report: what was scored, what was not and why, what stands out, how long it took.

Everything but the section on timings is the same, byte for byte, when a killed night is finished by
another run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chexradinet.results.nightly_plots import score_histograms
from chexradinet.results.page import (
    bullets,
    cards,
    count,
    figure,
    number,
    panel,
    paragraph,
    section,
    table,
    write_page,
)
from chexradinet.results.worklist import Entry, WorklistConfig, worklist_section

TIMINGS_HEADING = "Timings"
"""Heading of the one section that differs between equal nights."""

NOTICE = (
    "For research and for ordering a worklist, not for diagnosis. A score is no finding, and a low "
    "score excludes none. Nightly scoring is not emergency triage."
)
_MAX_EXCLUDED = 200


@dataclass(frozen=True, kw_only=True)
class FlaggedCase:
    """One X-ray of the report's pictures."""

    png: bytes
    study_uid: str
    finding: str
    probability: float
    threshold: float


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
    """Rows of the table of rejected objects."""
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
    quality: Mapping[str, int] = field(default_factory=dict)
    """Quality code to scored X-rays that have it."""
    cases: Sequence[FlaggedCase] = ()
    timings: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """What took time to its seconds: all together, the median and the longest of an X-ray."""
    score_s: float = 0.0
    """Seconds that the shards took, added up."""


def write_night_report(path: Path, report: NightReport) -> None:
    """Write the report as one self-contained HTML file."""
    sections = [
        _counts(report),
        _drift(report),
        _findings(report),
        _pictures(report),
        _excluded(report),
        _timings(report),
    ]
    subtitle = f"Plan {report.plan}, model {report.model_digest[:12]}"
    write_page(path, f"Chest X-rays of the night of {report.date}", subtitle, sections, NOTICE)


def write_worklist_page(
    path: Path, date: str, entries: Sequence[Entry], config: WorklistConfig
) -> None:
    """Write the worklist as one self-contained HTML file."""
    subtitle = f"{len(entries)} studies"
    parts = [paragraph(NOTICE), worklist_section(entries, config)]
    write_page(path, f"Worklist of {date}", subtitle, parts, NOTICE)


def _counts(report: NightReport) -> str:
    outside = report.num_out_of_distribution
    shown = cards(
        [
            ("X-rays planned", count(report.num_planned), ""),
            ("scored", count(report.num_scored), f"{report.num_studies} studies"),
            ("without a score", count(len(report.excluded)), "see below"),
            (
                "unlike the training data",
                count(outside),
                "the model has no reference" if outside is None else "out of distribution",
            ),
        ]
    )
    quality = [f"{code.replace('_', ' ')}: {found}" for code, found in report.quality.items()]
    listed = paragraph("Oddities of scored X-rays:") + bullets(quality) if quality else ""
    return section("Counts", paragraph(NOTICE), shown, listed)


def _drift(report: NightReport) -> str:
    found = report.drift
    if found is None:
        return section("Drift", paragraph("The model has no reference: drift cannot be measured."))
    said = f"Alarm: {', '.join(found['alarms'])}." if found["alarm"] else "No alarm."
    if found["status"] != "ok":
        said = f"Not compared: {found['num_patients']} patients."
    rows = [
        [name.replace(":", ": ").replace("_", " "), _distance(values), number(values["p_value"], 4)]
        for name, values in found["comparisons"].items()
    ]
    marked = {index for index, name in enumerate(found["comparisons"]) if name in found["alarms"]}
    headers = ["comparison", "distance", "p-value"]
    listed = table("Compared with the validation split", found["rule"], headers, rows, marked)
    return section("Drift", paragraph(said), listed)


def _distance(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}"
        for name, value in values.items()
        if name != "p_value"
    )


def _findings(report: NightReport) -> str:
    if not report.num_scored:
        return section("Scores", paragraph("No X-ray was scored."))
    rows = [
        [
            finding.replace("_", " "),
            count(report.num_flagged[finding]),
            f"{report.num_flagged[finding] / report.num_scored:.1%}",
            number(report.thresholds[finding]),
            number(sum(values) / len(values)),
        ]
        for finding, values in report.probabilities.items()
    ]
    headers = ["finding", "flagged", "part", "threshold", "mean probability"]
    plot = figure(
        score_histograms(report.probabilities, report.reference),
        "Histograms of calibrated probabilities, one a finding",
        "Filled: this night. Line: the validation split that the model was calibrated on.",
    )
    listed = table("Flagged X-rays", "At or above the operating threshold.", headers, rows)
    return section("Scores", listed, plot)


def _pictures(report: NightReport) -> str:
    shown = [
        figure(
            case.png,
            f"X-ray with heatmap and region of {case.finding.replace('_', ' ')}",
            f"{case.finding.replace('_', ' ')} {case.probability:.2f} "
            f"(threshold {case.threshold:.2f}), study {case.study_uid}",
        )
        for case in report.cases
    ]
    return section(
        "Flagged X-rays",
        paragraph("The most urgent ones, with the heatmap and region of the first finding."),
        panel(shown) or paragraph("No X-ray was flagged."),
    )


def _excluded(report: NightReport) -> str:
    reasons: dict[tuple[str, str], int] = {}
    for row in report.excluded:
        key = (str(row["status"]), str(row["reason"]))
        reasons[key] = reasons.get(key, 0) + 1
    summary = [[status, reason, count(num)] for (status, reason), num in sorted(reasons.items())]
    rows = [
        [str(row["object_key"]), str(row["reason"]), str(row["detail"])]
        for row in report.excluded[:_MAX_EXCLUDED]
    ]
    note = "" if len(report.excluded) <= _MAX_EXCLUDED else f"The first {_MAX_EXCLUDED}."
    return section(
        "Without a score",
        table("By reason", "", ["status", "reason", "objects"], summary, text_columns=2),
        table("Objects", note, ["object", "reason", "detail"], rows, text_columns=3)
        or paragraph("Every object was scored."),
    )


def _timings(report: NightReport) -> str:
    rows = [
        [name.replace("_", " "), f"{total:.1f}", f"{median * 1e3:.0f}", f"{longest * 1e3:.0f}"]
        for name, (total, median, longest) in report.timings.items()
    ]
    headers = ["", "all together, s", "median of an X-ray, ms", "longest, ms"]
    said = paragraph(f"The shards took {report.score_s:.1f} s, added up.")
    return section(TIMINGS_HEADING, said, table("By part of the work", "", headers, rows))
