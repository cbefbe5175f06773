"""The evaluation report: one HTML file that draws every figure from metrics.json.

Beyond the schema of `metrics` it shows, if they are there, from the test entry: `auprc`,
`positives`, `negatives`, `not_defined`, `roc` (finding to `roc_points`), `reliability` and
`ece_by_finding` (of `calibration_metrics`), `operating_points` (finding to `threshold`,
`sensitivity`, `specificity`); from the document: `arms`, `notes` (lines of text) and `title`.

Beside the numbers stand radiographs with maps, and the radiomics features that tell images with a
finding from images without: by the difference of medians over a robust standard deviation, because
radiomics features have heavy tails, and one extreme region must not decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config import RadiomicsConfig, RegionConfig
from chexradinet.dataset import Dataset
from chexradinet.evaluation import MEASURES, gain_sentences, interval, verdict
from chexradinet.evaluation.calibration import Calibration, apply_calibration
from chexradinet.evaluation.classification import Array, FloatArray
from chexradinet.evaluation.evaluator import EvaluatedModel, maps_of
from chexradinet.model.bundle import GUIDANCE_EVIDENCE
from chexradinet.records import Box
from chexradinet.regions import FEATURE_NAMES, regions_table
from chexradinet.regions.extract import extract_regions
from chexradinet.reports import number, readable, write_page
from chexradinet.reports.pictures import (
    decision_plot,
    learning_plot,
    localization_plot,
    overlay,
    png_bytes,
    reliability_plot,
    roc_plot,
)

MAX_PANEL_CASES = 12
"""Radiographs in the report's panel."""
MAX_CONTRAST_IMAGES = 400
"""Test images whose features are contrasted; the first in data-set order."""

_PANEL_SIDE_PX = 320
_ID_CHARACTERS = 16
_LABELS = {1.0: "labelled present", 0.0: "labelled absent"}
_NO_LINE = dict.fromkeys(("slope", "intercept", "in_the_large", "positives", "negatives"))
_MAD_TO_STANDARD_DEVIATION = 1.4826
_MIN_CASES = 5
_MAX_FEATURES = 10
_LOCATED_HEADS = {
    "iou_0.1": "IoU > 0.1",
    "iou_0.3": "IoU > 0.3",
    "iou_0.5": "IoU > 0.5",
    "pointing": "Pointing",
}


@dataclass(frozen=True, kw_only=True)
class PanelCase:
    """One radiograph of the panel."""

    image: npt.NDArray[np.uint8]
    """Grey values, shape (H, W)."""
    heatmap: Array | None
    """Heatmap of the finding, any resolution, shape (h, w)."""
    region: Box | None
    """The model's region, in pixels of the image."""
    true_boxes: Sequence[Box] = ()
    """The reader's boxes, in pixels of the image."""
    image_id: str
    """Opaque identifier; never a name."""
    finding: str
    """What the heatmap is of."""
    probability: float | None
    """Calibrated, in [0, 1]."""
    label: float | None = None
    """1 present, 0 absent, None or NaN unknown."""

    @property
    def png(self) -> bytes:
        """The radiograph with heatmap and boxes."""
        drawn = overlay(self.image, self.heatmap, self.region, self.true_boxes, _PANEL_SIDE_PX)
        return png_bytes(drawn)

    @property
    def known(self) -> str:
        """The label in words, empty if unknown."""
        return "" if self.label is None else _LABELS.get(self.label, "")

    @property
    def short_id(self) -> str:
        """The identifier's last part, shortened."""
        return PurePosixPath(self.image_id).name[:_ID_CHARACTERS]


@dataclass(frozen=True, kw_only=True)
class FeatureDifference:
    """One radiomics feature between images with and without one finding."""

    finding: str
    """The finding."""
    feature: str
    """Name of the feature, as pyradiomics spells it."""
    median_with: float
    """Median over images with the finding."""
    median_without: float
    """Median over images without it."""
    standardised: float
    """Difference of the medians in robust standard deviations of all images."""
    num_with: int
    """Images with the finding and with features."""
    num_without: int
    """Images without it and with features."""


@dataclass(frozen=True, kw_only=True)
class ReportFigures:
    """What the report shows beside its numbers."""

    panel: Sequence[PanelCase] = ()
    """A few test images, for each finding the surest true and the least sure true one."""
    features: Sequence[FeatureDifference] = ()
    """Features that differ most in the regions of the highest-scoring finding, largest first."""


def write_report(
    path: Path, metrics: Mapping[str, Any], figures: ReportFigures | None = None
) -> None:
    """Write the report, atomically: self-contained, without scripts or external requests.

    Args:
        path: The HTML file.
        metrics: Result of `metrics_document` or `read_metrics`.
        figures: Radiographs to show, few, because each is stored in the file, and features.
    """
    figures, test = figures or ReportFigures(), metrics["test"]
    arms = metrics.get("arms") or {}
    located = test["localization"]
    boxed = located.get("by_finding") or {}
    values = _headline(test)
    write_page(
        path,
        "evaluation",
        metrics=metrics,
        chosen=next(e for e in metrics["rounds"] if e["round"] == metrics["best_round"]),
        cards=[(label, number(value), note) for label, value, note in values if value is not None],
        undefined_cards=[label for label, value, _ in values if value is None],
        learning=learning_plot(curves) if (curves := learning_curves(metrics)) else None,
        arms=arms,
        gain=gain_sentences(arms),
        evidence=GUIDANCE_EVIDENCE,
        measures=MEASURES,
        verdict=verdict,
        notes=_notes(metrics),
        defined=_defined(test["auroc"], test.get("ece_by_finding") or {}),
        ranked=_defined(test["auroc"]),
        roc=_small_plots(roc_plot, test.get("roc"), test["auroc"]),
        reliability=_small_plots(
            reliability_plot, test.get("reliability"), test.get("ece_by_finding") or {}
        ),
        calibration_lines={
            name: line or _NO_LINE for name, line in (test.get("calibration_line") or {}).items()
        },
        decision=_small_plots(decision_plot, test.get("decision_curve"), None),
        flagged_gaps=[
            gap for gap in (test.get("gaps") or {}).get("compared", ()) if gap["flagged"]
        ],
        has_boxes=bool(boxed),
        located_heads=_LOCATED_HEADS,
        located_columns=[(head, "rand. · swap.") for head in _LOCATED_HEADS.values()],
        located_png=localization_plot(
            boxed,
            located.get("random_by_finding") or {},
            located.get("swapped_by_finding") or {},
            "iou_0.3",
        )
        if boxed
        else b"",
        panel=figures.panel,
        features=figures.features,
        **_provenance(metrics.get("provenance") or {}),
    )


def _provenance(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stages behind the chosen round, the evaluation last, and what it started from."""
    stages = list(found.get("stages") or [])
    starts = {
        "pretrain": "Round 0 started from a pre-trained encoder.",
        "initial_weights": "Round 0 started from a given state dict, such as ImageNet's.",
    }
    known = [starts[one["stage"]] for one in stages if one["stage"] in starts]
    off = "Round 0 started from random weights: ImageNet was off, as no file was given."
    judged = [{"stage": "evaluate", **found["evaluate"]}] if "evaluate" in found else []
    return {"stages": stages + judged, "start": " ".join(known) or off}


def learning_curves(
    metrics: Mapping[str, Any],
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return measure to arm to pairs of epoch and value, epochs counted over all guided rounds.

    A round without a `history` counts no epoch. An arm's last round stands beside the guided round
    of the same number.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    starts: dict[int, int] = {}
    start = 0
    for entry in metrics["rounds"]:
        starts[entry["round"]] = start
        start += _add_epochs(curves, "guided", entry.get("history") or (), start)
    for arm, content in (metrics.get("arms") or {}).items():
        for entry in content["rounds"]:
            first = starts.get(entry["round"], 0)
            _add_epochs(curves, arm, entry.get("history") or (), first)
    return curves


def _add_epochs(
    curves: dict[str, dict[str, list[tuple[float, float]]]],
    arm: str,
    history: Sequence[Mapping[str, Any]],
    start: int,
) -> int:
    """Add the epochs of one round, and return how many there are."""
    for epoch, record in enumerate(history, start=start + 1):
        values = {
            "loss": record["loss"],
            **(record.get("parts") or {}),
            "learning rate": record.get("learning_rate"),
            "validation mean AUROC": record.get("val_mean_auroc"),
        }
        for name, value in values.items():
            if value is not None:
                curves.setdefault(name, {}).setdefault(arm, []).append((epoch, value))
    return len(history)


def _headline(test: Mapping[str, Any]) -> list[tuple[str, float | None, str]]:
    """Return label, value and note of the headline figures."""
    located, bounds = test["localization"], test.get("ci95") or {}
    over = test.get("mean_auroc_num_findings", sum(v is not None for v in test["auroc"].values()))
    note = ", ".join(filter(None, (interval(bounds.get("mean_auroc")), f"{over} findings")))
    values = [("Mean AUROC, test", test["mean_auroc"], note)]
    for key in ("iou_0.1", "iou_0.3", "pointing"):
        label = "Peak in true box" if key == "pointing" else f"Localised at IoU {key[4:]}"
        held = interval(((bounds.get("localization") or {}).get(key) or {}).get("ci95"))
        note = ", ".join(filter(None, (held, f"swapped {number(located[f'swapped_{key}'])}")))
        values.append((label, located[key], note))
    return [*values, ("Calibration error", test["ece"], "mean over findings")]


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    missing = [name for name, value in metrics["test"]["auroc"].items() if value is None]
    lines = list(metrics.get("notes") or ())
    if missing:
        lines.append(
            f"Not defined on this split, for lack of a positive or a negative case: "
            f"{readable(missing)}. Means leave them out."
        )
    return lines


def _defined(*columns: Mapping[str, float | None]) -> list[str]:
    """Return the findings of which any number is defined: rows that are all n/d are not drawn."""
    return [name for name in columns[0] if any(values.get(name) is not None for values in columns)]


def _small_plots(
    draw: Any,  # noqa: ANN401 - `roc_plot` or `reliability_plot`
    curves: Mapping[str, Any] | None,
    values: Mapping[str, float | None] | None,
) -> dict[str, Any]:
    """Return the picture of small plots, None without a curve, and their values in words."""
    shown = {name: curve for name, curve in (curves or {}).items() if curve and any(curve.values())}
    if values is None:
        return {"png": draw(shown) if shown else None, "listed": ""}
    listed = "; ".join(f"{readable(name)} {number(values.get(name))}" for name in shown)
    return {"png": draw(shown, values) if shown else None, "listed": listed}


def report_figures(
    model: EvaluatedModel,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    calibration: Calibration,
    radiomics: RadiomicsConfig,
    regions: RegionConfig,
) -> ReportFigures:
    """Return what the report shows of a model on some rows.

    Args:
        model: The model and its logits on the rows.
        data: The data set.
        rows: Its test rows.
        calibration: From logits to probabilities.
        radiomics: Settings of the features.
        regions: How a map becomes a region.
    """
    probabilities = apply_calibration(calibration.as_dict(), data.info.findings, model.logits)
    return ReportFigures(
        panel=_panel(model, data, rows, probabilities, regions),
        features=_features(model, data, rows[:MAX_CONTRAST_IMAGES], radiomics, regions),
    )


def panel_cases(
    labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Return positions and findings to show: for each finding its surest and least sure positive.

    Surest ones come first, so that a short panel shows every finding before its failures.
    """
    surest, missed = [], []
    for column in range(labels.shape[1]):
        positives = np.flatnonzero(labels[:, column] == 1)
        if not len(positives):
            continue
        order = positives[np.argsort(-probabilities[positives, column], kind="stable")]
        surest.append((int(order[0]), column))
        if len(order) > 1:
            missed.append((int(order[-1]), column))
    return (surest + missed)[:MAX_PANEL_CASES]


def _panel(
    model: EvaluatedModel,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    regions: RegionConfig,
) -> list[PanelCase]:
    labels = data.labels[rows]
    cases = panel_cases(labels, probabilities)
    chosen = rows[[position for position, _ in cases]] if cases else rows[:0]
    columns = np.array([column for _, column in cases], dtype=np.int64)
    maps = maps_of(model.network, data, chosen, columns)
    found = extract_regions(maps, data.info.preprocessing.image_side, regions)
    image_ids = data.column("image_id")
    return [
        PanelCase(
            image=data.images(chosen[index : index + 1])[0],
            heatmap=maps[index],
            region=found[index].box,
            true_boxes=[
                labelled.box
                for labelled in data.boxes(int(chosen[index]))
                if labelled.finding == data.info.findings[column]
            ],
            image_id=str(image_ids[chosen[index]]),
            finding=data.info.findings[column],
            probability=float(probabilities[position, column]),
            label=float(labels[position, column]),
        )
        for index, (position, column) in enumerate(cases)
    ]


def _features(
    model: EvaluatedModel,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    radiomics: RadiomicsConfig,
    regions: RegionConfig,
) -> list[FeatureDifference]:
    """Contrast the regions of the highest-scoring finding: no label affects where they are."""
    # Here, so that whoever reads only panels needs no pyradiomics.
    from chexradinet.regions.radiomics import extract_features

    columns = model.logits[: len(rows)].argmax(axis=1).astype(np.int64)
    maps = maps_of(model.network, data, rows, columns)
    table = regions_table(
        data.column("image_id")[rows].tolist(),
        [data.info.findings[column] for column in columns],
        model.logits[np.arange(len(rows)), columns].tolist(),
        extract_regions(maps, data.info.preprocessing.image_side, regions),
    )
    parts = extract_features(data.images, table, rows, radiomics, num_workers=1)
    values = np.concatenate([part[list(FEATURE_NAMES)].to_numpy(np.float64) for part in parts])
    return feature_contrast(values, FEATURE_NAMES, data.labels[rows], data.info.findings)


def feature_contrast(
    features: Array,
    names: Sequence[str],
    labels: Array,
    findings: Sequence[str],
) -> list[FeatureDifference]:
    """Compare every feature between images with and without every finding.

    Args:
        features: One row per image, NaN if it has none; shape (N, R).
        names: Names of the R features.
        labels: 1, 0 or NaN, shape (N, F).
        findings: Names of the F columns.

    Returns:
        The ten features that differ most, largest difference first. Features without spread, and
        findings with fewer than five cases on a side, take no part.
    """
    measured = np.isfinite(features).all(axis=1)
    values = np.asarray(features, dtype=np.float64)[measured]
    truth = np.asarray(labels, dtype=np.float64)[measured]
    rows: list[FeatureDifference] = []
    for column, finding in enumerate(findings):
        rows += _differences(values, truth[:, column], names, finding)
    rows.sort(key=lambda row: (-abs(row.standardised), row.finding, row.feature))
    return rows[:_MAX_FEATURES]


def _differences(
    values: FloatArray, truth: FloatArray, names: Sequence[str], finding: str
) -> list[FeatureDifference]:
    present, absent = truth == 1, truth == 0
    num_with, num_without = int(present.sum()), int(absent.sum())
    if min(num_with, num_without) < _MIN_CASES:
        return []
    known = values[present | absent]
    spread = np.median(np.abs(known - np.median(known, axis=0)), axis=0)
    spread *= _MAD_TO_STANDARD_DEVIATION
    middle_with = np.median(values[present], axis=0)
    middle_without = np.median(values[absent], axis=0)
    return [
        FeatureDifference(
            finding=finding,
            feature=names[column],
            median_with=float(middle_with[column]),
            median_without=float(middle_without[column]),
            standardised=float((middle_with[column] - middle_without[column]) / spread[column]),
            num_with=num_with,
            num_without=num_without,
        )
        for column in np.flatnonzero(spread > 0).tolist()
    ]
