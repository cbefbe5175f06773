"""The evaluation report: one HTML file that draws every figure from metrics.json.

Beyond the schema of `metrics` it shows, where they are there, from the test entry: `auprc`,
`positives`, `negatives`, `not_defined`, `roc` (finding to `roc_points`), `reliability` and
`ece_by_finding` (of `calibration_metrics`), `operating_points` (finding to `threshold`,
`sensitivity`, `specificity`); from the document: `arms`, `notes` (lines of text) and `title`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.evaluation.classification import Array
from chexradinet.evaluation.metrics import gain_sentences, interval
from chexradinet.records import Box
from chexradinet.reports import page
from chexradinet.reports.contrast import FeatureContrast
from chexradinet.reports.overlay import overlay
from chexradinet.reports.plots import localization_plot, reliability_plot, roc_plot
from chexradinet.reports.report_tables import (
    arms_table,
    contrast_table,
    findings_table,
    localization_table,
    names,
    readable,
    rounds_table,
    views_table,
)

_PANEL_SIDE_PX = 320
_FOOTER = (
    "Research software; not for diagnostic use. n/d: not defined, because a class, a box or an arm "
    "is missing. Random (rand.): a smooth random map. Swapped (swap.): the map of another patient "
    "with the same finding: the usual place and nothing else. ECE: expected calibration "
    "error."
)


@dataclass(frozen=True, kw_only=True)
class PanelCase:
    """One radiograph of the panel."""

    image: npt.NDArray[np.uint8]
    """Grey values, shape (H, W)."""
    heatmap: Array | None
    """Of the finding, any resolution, shape (h, w)."""
    region: Box | None
    """Of the model, in pixels of the image."""
    true_boxes: Sequence[Box] = ()
    """Of the reader, in pixels of the image."""
    image_id: str
    """Opaque identifier; never a name."""
    finding: str
    """What the heatmap is of."""
    probability: float | None
    """Calibrated, in [0, 1]."""
    label: float | None = None
    """1 present, 0 absent, None or NaN unknown."""


def write_report(
    path: Path,
    metrics: Mapping[str, Any],
    panel: Sequence[PanelCase] = (),
    features: FeatureContrast | None = None,
) -> None:
    """Write the report, atomically: self-contained, without scripts or external requests.

    Args:
        path: The HTML file.
        metrics: Of `metrics_document` or `read_metrics`.
        panel: Radiographs to show, few: each is stored in the file.
        features: Of `feature_contrast`, on the test split; None leaves the section out.
    """
    test, lines = metrics["test"], metrics["protocol"]
    sections = [
        _headline(metrics),
        page.section("Rounds", rounds_table(metrics)),
        page.section(
            "What guidance bought",
            page.bullets(gain_sentences(metrics.get("arms") or {})),
            arms_table(metrics),
        ),
        page.section("Findings", _notes(metrics), findings_table(metrics)),
        page.section("ROC curves", _roc(test, lines)),
        page.section("Calibration", _reliability(test, lines)),
        page.section("By view", views_table(metrics)),
        page.section(
            "Where the model looks", _localization(test, lines), localization_table(metrics)
        ),
        page.section("Radiographs", _panel(panel)),
        page.section("Radiomics", contrast_table(features, lines.get("test", ""))),
    ]
    title = metrics.get("title") or "Evaluation report"
    page.write_page(path, title, _subtitle(metrics), sections, _FOOTER)


def _subtitle(metrics: Mapping[str, Any]) -> str:
    chosen = _chosen(metrics)
    return (
        f"ChexRadiNet, round {chosen['round']} of {len(metrics['rounds'])} evaluated "
        f"(guidance: {chosen['guidance']})"
    )


def _chosen(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = next(
        entry for entry in metrics["rounds"] if entry["round"] == metrics["best_round"]
    )
    return chosen


def _headline(metrics: Mapping[str, Any]) -> str:
    test = metrics["test"]
    located, bounds = test["localization"], test.get("ci95") or {}
    over = test.get("mean_auroc_num_findings", sum(v is not None for v in test["auroc"].values()))
    values = [
        (
            "Mean AUROC, test",
            page.number(test["mean_auroc"]),
            " ".join(
                part for part in (interval(bounds.get("mean_auroc")), f"{over} findings") if part
            ),
        )
    ]
    for key in ("iou_0.1", "iou_0.3", "pointing"):
        label = "Peak in true box" if key == "pointing" else f"Localised at IoU {key[4:]}"
        held = interval(((bounds.get("localization") or {}).get(key) or {}).get("ci95"))
        note = f"{held} swapped {page.number(located[f'swapped_{key}'])}".strip()
        values.append((label, page.number(located[key]), note))
    values.append(("Calibration error", page.number(test["ece"]), "mean over findings"))
    return page.cards(values) + page.paragraph(
        f"Protocol: {metrics['protocol'].get('test', '')}", "protocol"
    )


def _notes(metrics: Mapping[str, Any]) -> str:
    test = metrics["test"]
    missing = test.get("not_defined") or [
        name for name, value in test["auroc"].items() if value is None
    ]
    lines = list(metrics.get("notes") or ())
    if missing:
        lines.append(
            "Not defined on this split, for want of a positive or a negative case: "
            f"{names(missing)}. Means leave them out."
        )
    return page.bullets(lines)


def _roc(test: Mapping[str, Any], lines: Mapping[str, str]) -> str:
    curves = {name: curve for name, curve in (test.get("roc") or {}).items() if curve}
    if not curves:
        return ""
    told = "; ".join(f"{readable(name)} {page.number(test['auroc'].get(name))}" for name in curves)
    return page.figure(
        roc_plot(curves, test["auroc"]),
        f"ROC curves, one plot a finding. AUROC: {told}.",
        "Title: finding and AUROC. Dotted: a score that knows nothing.",
        lines.get("test", ""),
    )


def _reliability(test: Mapping[str, Any], lines: Mapping[str, str]) -> str:
    curves = {
        name: curve
        for name, curve in (test.get("reliability") or {}).items()
        if curve and curve["predicted"]
    }
    if not curves:
        return ""
    errors = test.get("ece_by_finding") or {}
    told = "; ".join(f"{readable(name)} {page.number(errors.get(name))}" for name in curves)
    return page.figure(
        reliability_plot(curves, errors),
        f"Reliability curves, one plot a finding. Expected calibration error: {told}.",
        "Observed frequency against promised probability, bins of equal mass. Title: finding and "
        "calibration error. Dotted: promises kept.",
        _sentence_of(lines.get("test", ""), lines.get("calibration", "")),
    )


def _localization(test: Mapping[str, Any], lines: Mapping[str, str]) -> str:
    entry = test["localization"]
    own = entry.get("by_finding") or {}
    if not own:
        return page.paragraph("No case of this split has a true box, so nothing can be localised.")
    controls = [entry.get(f"{prefix}_by_finding") or {} for prefix in ("random", "swapped")]
    return page.figure(
        localization_plot(own, controls[0], controls[1], "iou_0.3"),
        "Fraction of cases localised at IoU 0.3 per finding, beside the random and swapped maps; "
        "the numbers are in the table below.",
        "A bar that ends right of its diamond looks at the finding; one that ends there knows only "
        "the usual place.",
        lines.get("localization", ""),
    )


def _panel(panel: Sequence[PanelCase]) -> str:
    figures = [_panel_figure(case) for case in panel]
    legend = (
        "Glow: positive evidence for the finding. Amber, solid: the model's region. "
        "Blue, dashed: the reader's box, where there is one."
    )
    return page.paragraph(legend, "note") + page.panel(figures) if figures else ""


def _panel_figure(case: PanelCase) -> str:
    drawn = overlay(case.image, case.heatmap, case.region, case.true_boxes, _PANEL_SIDE_PX)
    labels = {1.0: "labelled present", 0.0: "labelled absent"}
    known = labels.get(case.label, "") if case.label is not None else ""
    facts = [
        readable(case.finding),
        f"probability {page.number(case.probability, 2)}",
        known,
        "" if case.region else "no region",
        f"image {case.image_id[:16]}",
    ]
    caption = ", ".join(fact for fact in facts if fact)
    shown = "region drawn" if case.region else "no region"
    boxes = f"{len(case.true_boxes)} true boxes drawn" if case.true_boxes else "no true box"
    return page.figure(
        page.png_bytes(drawn),
        f"Chest radiograph with heatmap of {readable(case.finding)}; {shown}; {boxes}",
        caption,
    )


def _sentence_of(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
