"""A night's HTML report: what was scored, what was not and why, what stands out, how long it took.

Everything but the section on timings is the same, byte for byte, when a killed night is finished by
another run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from chexradinet.config.nightly import WorklistConfig
from chexradinet.reports.nightly_contents import NightReport
from chexradinet.reports.nightly_plots import score_histograms
from chexradinet.reports.page import (
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
from chexradinet.reports.worklist import Entry, worklist_section

TIMINGS_HEADING = "Timings"
"""Heading of the one section that differs between equal nights."""

NOTICE = (
    "For research and for ordering a worklist, not for diagnosis. A score is no finding, and a low "
    "score excludes none. Nightly scoring is not emergency triage."
)
_MAX_LISTED = 200


def write_night_report(path: Path, report: NightReport) -> None:
    """Write the report as one self-contained HTML file."""
    sections = [
        _counts(report),
        _drift(report),
        _outside(report),
        _findings(report),
        _pictures(report),
        _excluded(report),
        _timings(report),
    ]
    subtitle = f"Plan {report.plan}, model {report.model_digest[:12]}"
    write_page(path, f"Chest X-rays of the night of {report.date}", subtitle, sections, NOTICE)


class Lacking(NamedTuple):
    """What belongs on a worklist and cannot be named there."""

    unscored: Mapping[tuple[str, str], int]
    """Status and reason to objects of the night that have no score."""
    foreign_plans: Sequence[int] = ()
    """Plans whose X-rays another release stored in its own way."""


def write_worklist_page(
    path: Path,
    date: str,
    entries: Sequence[Entry],
    config: WorklistConfig,
    lacking: Lacking | None = None,
) -> None:
    """Write the worklist as one self-contained HTML file.

    Args:
        path: The file.
        date: Of the night.
        entries: The studies, in order.
        config: By what they were ordered.
        lacking: What the list cannot name; None where that was not counted.
    """
    subtitle = f"{len(entries)} studies"
    parts = [paragraph(NOTICE), _missing(lacking), worklist_section(entries, config)]
    write_page(path, f"Worklist of {date}", subtitle, parts, NOTICE)


def _missing(lacking: Lacking | None) -> str:
    """Say what the list lacks: whoever reads by it alone would never see these."""
    if lacking is None:
        return ""
    parts = []
    if lacking.foreign_plans:
        plans = ", ".join(str(number) for number in lacking.foreign_plans)
        parts.append(
            paragraph(f"X-rays of plan {plans}, stored by another release: see the lists before.")
        )
    total = sum(lacking.unscored.values())
    if total:
        said = f"Files of the night that have no score: {count(total)}. Read them without the list."
        parts += [paragraph(said), _by_reason(lacking.unscored)]
    elif not parts:
        parts.append(paragraph("Every X-ray of the night has a score."))
    return section("Not on this list", *parts)


def _by_reason(counts: Mapping[tuple[str, str], int]) -> str:
    rows = [
        [status, reason.replace("_", " "), count(num)]
        for (status, reason), num in sorted(counts.items())
    ]
    return table("By reason", "", ["status", "reason", "files"], rows, text_columns=2)


def _outside(report: NightReport) -> str:
    if report.num_out_of_distribution is None:
        return ""
    rows = [[one.study_uid, f"{one.distance:.2f}"] for one in report.outside[:_MAX_LISTED]]
    more = len(report.outside) - len(rows)
    return section(
        "Unlike the training data",
        paragraph(report.ood_rule),
        table(
            "Out of distribution",
            "A score of such an X-ray says little." + (f" {more} more." if more else ""),
            ["study", "distance"],
            rows,
            uid_columns=(0,),
        )
        or paragraph("No X-ray."),
    )


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
                "the model has no reference" if outside is None else "out of distribution, below",
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
    counts = Counter((str(row["status"]), str(row["reason"])) for row in report.excluded)
    # By number alone: an object's name is its sender's, and may hold that of the patient.
    listed = paragraph(f"rejected-{report.plan:06d}.csv, beside this file, names them.")
    return section(
        "Without a score",
        _by_reason(counts) + listed if counts else paragraph("Every object was scored."),
    )


def _timings(report: NightReport) -> str:
    rows = [
        [name.replace("_", " "), f"{total:.1f}", f"{median * 1e3:.0f}", f"{longest * 1e3:.0f}"]
        for name, (total, median, longest) in report.timings.items()
    ]
    headers = ["", "all together, s", "median of an X-ray, ms", "longest, ms"]
    said = paragraph(f"The shards took {report.score_s:.1f} s, added up.")
    return section(TIMINGS_HEADING, said, table("By part of the work", "", headers, rows))
