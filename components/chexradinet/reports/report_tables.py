"""The tables of the evaluation report, each drawn from metrics.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from chexradinet.evaluation.localization import LOCALIZATION_KEYS
from chexradinet.evaluation.metrics import MEASURES, interval, signed, verdict
from chexradinet.reports.contrast import FeatureContrast
from chexradinet.reports.page import NOT_DEFINED, Cell, count, number, table

_HEADS = {
    "iou_0.1": "IoU > 0.1",
    "iou_0.3": "IoU > 0.3",
    "iou_0.5": "IoU > 0.5",
    "pointing": "Pointing",
}
_LOCATED: tuple[Cell, ...] = tuple((head, "rand. · swap.") for head in _HEADS.values())


def readable(finding: str) -> str:
    """Return a finding's name as text is set."""
    return finding.replace("_", " ")


def rounds_table(metrics: Mapping[str, Any]) -> str:
    """Return the per-round table: every round of the chosen arm and of the control arms."""
    rows: list[list[Cell]] = []
    marked = []
    for entry in metrics["rounds"]:
        best = entry["round"] == metrics["best_round"]
        if best:
            marked.append(len(rows))
        rows.append(_round_row(entry, " (chosen)" if best else ""))
    for arm, content in (metrics.get("arms") or {}).items():
        rows += [_round_row(entry, f" ({arm} arm)") for entry in content.get("rounds") or ()]
    lines = metrics["protocol"]
    protocol = _sentences(
        lines.get("rounds", ""),
        f"Localisation: {lines['localization']}" if _localized(lines) else "",
    )
    headers: list[Cell] = ["Round", "Guidance", "Mean AUROC", *_LOCATED]
    return table("One row a round and arm", protocol, headers, rows, marked, text_columns=2)


def _round_row(entry: Mapping[str, Any], suffix: str) -> list[Cell]:
    num = entry.get("mean_auroc_num_findings")
    over = f"{num} findings" if num is not None else ""
    located = [localization_cell(entry["localization"], key) for key in LOCALIZATION_KEYS]
    return [
        f"{entry['round']}",
        f"{entry['guidance']}{suffix}",
        (number(entry["mean_auroc"]), over),
        *located,
    ]


def localization_cell(entry: Mapping[str, Any], key: str) -> Cell:
    """Return a localisation number with its two controls below it."""
    controls = [entry.get(f"{prefix}_{key}") for prefix in ("random", "swapped")]
    return number(entry.get(key)), " · ".join(number(value) for value in controls)


def arms_table(metrics: Mapping[str, Any]) -> str:
    """Return the paired differences, guided model minus arm, with what each shows."""
    rows: list[list[Cell]] = []
    for arm, content in (metrics.get("arms") or {}).items():
        for measure, difference in (content.get("difference") or {}).items():
            rows.append(
                [
                    MEASURES.get(measure, measure),
                    f"{arm} arm",
                    signed(difference.get("difference")),
                    interval(difference.get("ci95")) or NOT_DEFINED,
                    verdict(difference),
                ]
            )
    headers = ["Measure", "Against", "Difference", "95% interval", "Shown"]
    protocol = metrics["protocol"].get("test", "")
    return table(
        "Chosen model minus arm, same images, patients resampled",
        protocol,
        headers,
        rows,
        text_columns=2,
    )


def findings_table(metrics: Mapping[str, Any]) -> str:
    """Return the per-finding table of the test split."""
    test = metrics["test"]
    bounds = test.get("ci95") or {}
    rows = [_finding_row(test, bounds, finding) for finding in test["auroc"]]
    headers = [
        "Finding", "AUROC", "Average precision", "Positive", "Prevalence", "Threshold",
        "Sensitivity", "Specificity", "ECE",
    ]  # fmt: skip
    return table(
        "Findings on the test split, 95% intervals over patients",
        metrics["protocol"].get("test", ""),
        headers,
        rows,
    )


def _finding_row(test: Mapping[str, Any], bounds: Mapping[str, Any], finding: str) -> list[Cell]:
    positives = (test.get("positives") or {}).get(finding)
    negatives = (test.get("negatives") or {}).get(finding)
    known = (positives or 0) + (negatives or 0)
    point = (test.get("operating_points") or {}).get(finding) or {}
    precision = (test.get("auprc") or {}).get(finding)
    return [
        readable(finding),
        (number(test["auroc"][finding]), interval((bounds.get("auroc") or {}).get(finding))),
        (number(precision), interval((bounds.get("auprc") or {}).get(finding))),
        (count(positives), f"of {known:,}" if known else ""),
        number(positives / known if positives is not None and known else None),
        number(point.get("threshold")),
        number(point.get("sensitivity")),
        number(point.get("specificity")),
        number((test.get("ece_by_finding") or {}).get(finding)),
    ]


def views_table(metrics: Mapping[str, Any]) -> str:
    """Return AUROC by view: a finding told by the view alone shows here."""
    test = metrics["test"]
    views = test.get("by_view") or {}
    if not views:
        return ""
    heads = [view or "unknown" for view in views]
    rows: list[list[Cell]] = [
        ["Images", *(count(entry.get("num_images")) for entry in views.values())],
        [
            "Mean AUROC",
            *(
                (number(entry.get("mean_auroc")), _over(entry.get("mean_auroc_num_findings")))
                for entry in views.values()
            ),
        ],
    ]
    for finding in test["auroc"]:
        areas = [
            (
                number((entry.get("auroc") or {}).get(finding)),
                _positive((entry.get("positives") or {}).get(finding)),
            )
            for entry in views.values()
        ]
        rows.append([readable(finding), *areas])
    return table("AUROC by view", metrics["protocol"].get("test", ""), ["", *heads], rows, (1,))


def localization_table(metrics: Mapping[str, Any]) -> str:
    """Return the localisation per finding beside both controls."""
    entry = metrics["test"]["localization"]
    own = entry.get("by_finding") or {}
    rows: list[list[Cell]] = []
    for finding, values in own.items():
        merged = dict(values)
        for prefix in ("random", "swapped"):
            control = (entry.get(f"{prefix}_by_finding") or {}).get(finding) or {}
            merged |= {f"{prefix}_{key}": control.get(key) for key in LOCALIZATION_KEYS}
        cells = [localization_cell(merged, key) for key in LOCALIZATION_KEYS]
        rows.append([readable(finding), count(values.get("num_cases")), *cells])
    if rows:
        means = [localization_cell(entry, key) for key in LOCALIZATION_KEYS]
        rows.append(["Mean over findings", count(entry.get("num_cases")), *means])
    return table(
        "Localisation of the chosen round",
        metrics["protocol"].get("localization", ""),
        ["Finding", "Cases", *_LOCATED],
        rows,
        (len(rows) - 1,),
    )


def contrast_table(features: FeatureContrast | None, protocol: str) -> str:
    """Return the radiomics features that differ most between images with and without a finding."""
    rows: list[list[Cell]] = [
        [
            readable(row.finding),
            row.feature.replace("_", " "),
            signed(row.standardised, 2),
            (f"{row.median_with:.4g}", f"{row.num_with:,} images"),
            (f"{row.median_without:.4g}", f"{row.num_without:,} images"),
        ]
        for row in (features.rows if features else ())
    ]
    headers = ["Finding", "Feature", "Difference (robust SD)", "Median with", "Median without"]
    return table(
        "Radiomics features that differ most between images with and without a finding",
        protocol,
        headers,
        rows,
        text_columns=2,
    )


def _localized(lines: Mapping[str, str]) -> bool:
    return bool(lines.get("localization")) and lines["localization"] != lines.get("rounds")


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)


def _over(num_findings: int | None) -> str:
    return "" if num_findings is None else f"{num_findings} findings"


def _positive(num: int | None) -> str:
    return "" if num is None else f"{num:,} positive"


def names(findings: Sequence[str]) -> str:
    """Return findings as they stand in a sentence."""
    return ", ".join(readable(finding) for finding in findings)
