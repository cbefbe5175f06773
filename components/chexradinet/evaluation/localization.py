"""Does the model look where the reader saw the finding? Accuracy of boxes, with honest controls.

A case is one image with one finding that a reader boxed. The prediction is one box, chosen without
the truth; no box is a miss. Two controls stand beside every number: `random` (a smooth random map)
and `swapped` (the map of another patient with the same finding: the usual place, nothing else).
Intervals resample patients whole; two models are compared on the same resamples.

Source: Wang et al. 2017, arXiv:1705.02315 (accuracy at an IoU threshold); Zhang et al. 2016,
arXiv:1608.00507 (pointing game, here without tolerance).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.config import EvaluationConfig, RegionConfig
from chexradinet.dataset import Dataset
from chexradinet.errors import EvaluationError
from chexradinet.evaluation import LOCALIZATION_KEYS
from chexradinet.evaluation.classification import (
    BoolArray,
    FloatArray,
    finite_or_none,
    interval_of,
    mean_of_defined,
    mean_or_none,
    patient_weights,
)
from chexradinet.records import Box, Region
from chexradinet.regions.extract import extract_regions

_MARK_IOU = 0.3
_SENSITIVITIES = (0.3, 0.5, 0.7)
_FALSE_RATES = (0.05, 0.1, 0.25)
_THRESHOLDS = {"iou_0.1": 0.1, "iou_0.3": 0.3, "iou_0.5": 0.5}


@dataclass(frozen=True, kw_only=True)
class BoxedCases:
    """Test images with a finding that a reader boxed; one case per image and finding."""

    rows: npt.NDArray[np.int64]
    """Data-set row of each case, shape (N,)."""
    columns: npt.NDArray[np.int64]
    """Finding of each case, as a column of the logits, shape (N,)."""
    findings: list[str]
    """Finding of each case, by name."""
    patients: list[str]
    """Patient of each case."""
    boxes: list[list[Box]]
    """True boxes of each case, at least one."""


def boxed_cases(data: Dataset, rows: npt.NDArray[np.int64]) -> BoxedCases:
    """Return the boxed cases among some rows, in data-set order."""
    order = {name: column for column, name in enumerate(data.info.findings)}
    patients = data.column("patient_id")
    found: dict[tuple[int, str], list[Box]] = {}
    for row in rows:
        for labelled in data.boxes(int(row)):
            if labelled.finding in order:
                found.setdefault((int(row), labelled.finding), []).append(labelled.box)
    return BoxedCases(
        rows=np.array([row for row, _ in found], dtype=np.int64),
        columns=np.array([order[name] for _, name in found], dtype=np.int64),
        findings=[name for _, name in found],
        patients=[str(patients[row]) for row, _ in found],
        boxes=list(found.values()),
    )


@dataclass(frozen=True, kw_only=True)
class Localization:
    """How well one model locates: numbers with controls, hits, and the regions behind them."""

    metrics: dict[str, Any]
    """The `localization` entry of metrics.json."""
    hits: dict[str, BoolArray]
    """Measure to truth value of each case."""
    regions: list[Region]
    """Region of each case."""


def localize(
    cases: BoxedCases,
    maps: npt.NDArray[np.floating],
    image_side: int,
    regions: RegionConfig,
    config: EvaluationConfig,
) -> Localization:
    """Measure where the maps of boxed cases look.

    Args:
        cases: N boxed cases.
        maps: The map of each case's finding, shape (N, h, w).
        image_side: Side of the model's input, in pixels; true boxes are in these pixels.
        regions: How a map becomes a region; own maps and controls alike.
        config: Its seed draws the controls, its samples the intervals.
    """
    own = extract_regions(maps, image_side, regions)
    hits = localization_hits(own, cases.boxes)
    noise = random_maps(len(maps), maps.shape[1], maps.shape[2], config.seed)
    random = extract_regions(noise, image_side, regions)
    order = swapped_order(cases.findings, cases.patients, config.seed)
    swappable = np.flatnonzero(order >= 0)
    swapped = localization_metrics(
        [own[order[case]] for case in swappable],
        [cases.boxes[case] for case in swappable],
        [cases.findings[case] for case in swappable],
    )
    metrics = with_controls(
        localization_metrics(own, cases.boxes, cases.findings),
        localization_metrics(random, cases.boxes, cases.findings),
        swapped,
    )
    metrics["ci95"] = localization_intervals(
        hits, cases.findings, cases.patients, samples=config.bootstrap_samples, seed=config.seed
    )
    return Localization(metrics=metrics, hits=hits, regions=own)


def localization_hits(
    predicted: Sequence[Region], true: Sequence[Sequence[Box]]
) -> dict[str, BoolArray]:
    """Tell for each case and measure whether it was a hit.

    Args:
        predicted: The region of each case, N of them; its box or its peak may be missing.
        true: The reader's boxes of the case's finding, at least one; N of them. Same pixels as the
            predicted boxes.

    Returns:
        Measure to truth values of shape (N,). An overlap equal to the threshold is not a hit.

    Raises:
        EvaluationError: lengths differ, or a case has no true box.
    """
    if len(predicted) != len(true):
        raise EvaluationError(
            f"{len(predicted)} regions and {len(true)} lists of true boxes; "
            "give one of each per case"
        )
    if not all(true):
        raise EvaluationError("a case has no true box; only boxed cases can be evaluated")
    pairs = list(zip(predicted, true, strict=True))
    overlaps = np.array([_overlap(*pair) for pair in pairs])
    hits = {key: overlaps > threshold for key, threshold in _THRESHOLDS.items()}
    hits["pointing"] = np.array([_points_at(*pair) for pair in pairs], dtype=np.bool_)
    return hits


def _overlap(region: Region, boxes: Sequence[Box]) -> float:
    """Return the largest overlap of a region with any box; 0 if there is none."""
    found = (region.box.intersection_over_union(box) for box in boxes if region.box)
    return max(found, default=0.0)


def _points_at(region: Region, boxes: Sequence[Box]) -> bool:
    if region.peak_row is None or region.peak_column is None:
        return False
    return any(box.contains(region.peak_row, region.peak_column) for box in boxes)


def free_response(
    predicted: Sequence[Region], scores: FloatArray, true: Sequence[Sequence[Box]]
) -> dict[str, Any]:
    """Return sensitivity against false marks per image, of one finding and one mark per image.

    Args:
        predicted: The region of each image, N of them; one without a box marks nothing.
        scores: Score of the finding in each image, shape (N,); marks are taken from the highest.
        true: The reader's boxes of each image; empty if the finding is absent.

    Returns:
        `fp_at_sensitivity` (false marks per image at sensitivity 0.3, 0.5 and 0.7, None if that is
        not reached), `sensitivity_at_fp` (at 0.05, 0.1 and 0.25 false marks per image),
        `num_images`, `num_boxes`. A mark hits a box if they overlap by more than 0.3, one box at
        most; sensitivity is over boxes.

    Source: Bunch et al. 1977 (free-response receiver operating characteristic).
    """
    pairs = zip(predicted, true, strict=True)
    hits = np.array([_overlap(*pair) > _MARK_IOU for pair in pairs], dtype=np.bool_)
    marks = np.array([region.box is not None for region in predicted], dtype=np.bool_)
    num_images, num_boxes = len(predicted), sum(map(len, true))
    levels, place = np.unique(-scores[marks], return_inverse=True)
    found = np.cumsum(np.bincount(place, hits[marks], len(levels))) / max(1, num_boxes)
    false = np.cumsum(np.bincount(place, ~hits[marks], len(levels))) / max(1, num_images)
    return {
        "fp_at_sensitivity": {
            f"{wanted:g}": float(false[np.argmax(found >= wanted)])
            if (found >= wanted).any()
            else None
            for wanted in _SENSITIVITIES
        },
        "sensitivity_at_fp": {
            f"{most:g}": float(np.max(found[false <= most], initial=0.0)) if num_boxes else None
            for most in _FALSE_RATES
        },
        "num_images": num_images,
        "num_boxes": num_boxes,
    }


def localization_metrics(
    predicted: Sequence[Region], true: Sequence[Sequence[Box]], findings: Sequence[str]
) -> dict[str, Any]:
    """Return the localisation accuracy: the mean over findings of the fraction of hits.

    Args:
        predicted: As in `localization_hits`.
        true: As in `localization_hits`.
        findings: The finding of each case, N of them.

    Returns:
        `iou_0.1`, `iou_0.3`, `iou_0.5` and `pointing` in [0, 1], None without a case;
        `by_finding` with the same keys and `num_cases` each; `num_cases`, `num_without_box` and
        `num_findings`.
    """
    hits = localization_hits(predicted, true)
    by_finding = {
        finding: {
            **{key: float(hits[key][rows].mean()) for key in LOCALIZATION_KEYS},
            "num_cases": int(rows.sum()),
        }
        for finding, rows in cases_by_finding(findings, len(predicted)).items()
    }
    means = {
        key: mean_or_none([row[key] for row in by_finding.values()]) for key in LOCALIZATION_KEYS
    }
    return {
        **means,
        "num_cases": len(predicted),
        "num_without_box": sum(region.box is None for region in predicted),
        "num_findings": len(by_finding),
        "by_finding": by_finding,
    }


def with_controls(
    own: Mapping[str, Any], random: Mapping[str, Any], swapped: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `localization` entry of metrics.json: own numbers and prefixed controls.

    Args:
        own: Result of `localization_metrics` with the model's own maps.
        random: The same with random maps.
        swapped: The same with swapped maps, over the cases for which a swap exists; how many that
            is stays beside it as `swapped_num_cases`.
    """
    merged = dict(own)
    for prefix, control in {"random": random, "swapped": swapped}.items():
        merged |= {f"{prefix}_{key}": control[key] for key in (*LOCALIZATION_KEYS, "num_cases")}
        merged[f"{prefix}_by_finding"] = control["by_finding"]
    return merged


def random_maps(n: int, height: int, width: int, seed: int) -> npt.NDArray[np.float32]:
    """Return smooth random maps, the control that knows nothing.

    White noise blurred with a Gaussian of an eighth of the longer side, scaled to unit variance.

    Returns:
        Shape (n, height, width); the first maps do not depend on how many follow.
    """
    generator = np.random.default_rng(seed)
    sigma = max(height, width) / 8
    maps = np.empty((n, height, width), dtype=np.float32)
    for index in range(n):
        noise = generator.standard_normal((height, width), dtype=np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        maps[index] = smooth / (smooth.std() + np.finfo(np.float32).tiny)
    return maps


def swapped_order(
    findings: Sequence[str], patient_ids: Sequence[Any], seed: int
) -> npt.NDArray[np.int64]:
    """Return for each case the index of the case whose map replaces its own.

    The other case has the same finding and another patient. Within a finding every map is used
    once, unless one patient has more than half of the cases: then the others' are drawn at random.

    Returns:
        Shape (N,); -1 if no other patient has the finding, so that no swap is defined.
    """
    order = np.full(len(findings), -1, dtype=np.int64)
    patients = np.asarray(patient_ids)
    generator = np.random.default_rng(seed)
    for rows in cases_by_finding(findings, len(patients)).values():
        cases = generator.permutation(np.flatnonzero(rows))
        order[cases] = _swap(cases, patients[cases], generator)
    return order


def _swap(
    cases: npt.NDArray[np.int64], patients: npt.NDArray[Any], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    _, group, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    largest = int(sizes.max())
    if largest == len(cases):
        return np.full(len(cases), -1, dtype=np.int64)
    if 2 * largest > len(cases):
        return np.array([generator.choice(cases[group != own]) for own in group])
    # With patients side by side, a shift by the largest patient's count always leaves the patient.
    grouped = np.argsort(generator.permutation(len(sizes))[group], kind="stable")
    chosen = np.empty_like(cases)
    chosen[grouped] = cases[np.roll(grouped, -largest)]
    return chosen


def cases_by_finding(findings: Sequence[str], num_cases: int) -> dict[str, BoolArray]:
    """Return which of the cases belong to each finding, findings in alphabetical order.

    Raises:
        EvaluationError: lengths differ.
    """
    if len(findings) != num_cases:
        raise EvaluationError(
            f"{len(findings)} findings for {num_cases} cases; give the finding of each case"
        )
    names = np.asarray(findings, dtype=object)
    return {name: np.asarray(names == name) for name in sorted(set(findings))}


def localization_intervals(
    hits: Mapping[str, BoolArray],
    findings: Sequence[str],
    patient_ids: Sequence[Any],
    baseline: Mapping[str, BoolArray] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return 95% intervals of the localisation accuracy, or of its difference from a baseline.

    Args:
        hits: Result of `localization_hits`.
        findings: The finding of each case, N of them.
        patient_ids: The patient of each case, N of them; resampled whole.
        baseline: Hits of another model or control on the same cases; the result is then the paired
            difference, `hits` minus this.
        samples: Resamples.
        seed: Random seed; equal seeds give equal intervals.

    Returns:
        For each measure `difference` (or `value` without a baseline) and `ci95`, None if not
        defined.
    """
    label = "value" if baseline is None else "difference"
    members = cases_by_finding(findings, len(patient_ids))
    if not members:
        return {key: {label: None, "ci95": None} for key in LOCALIZATION_KEYS}
    gains = {
        key: hits[key].astype(float) - (baseline[key] if baseline is not None else 0.0)
        for key in LOCALIZATION_KEYS
    }
    weights = np.concatenate(list(patient_weights(patient_ids, samples, seed)), axis=1)
    once = np.ones((len(patient_ids), 1))
    return {
        key: {
            label: finite_or_none(_mean_over_findings(gains[key], members, once)[0]),
            "ci95": interval_of(_mean_over_findings(gains[key], members, weights)),
        }
        for key in LOCALIZATION_KEYS
    }


def _mean_over_findings(
    gains: FloatArray, members: Mapping[str, BoolArray], weights: FloatArray
) -> FloatArray:
    fractions = []
    for rows in members.values():
        heavy = weights[rows]
        total = heavy.sum(axis=0)
        mean = (gains[rows] @ heavy) / np.where(total > 0, total, 1.0)
        fractions.append(np.where(total > 0, mean, np.nan))
    return mean_of_defined(np.stack(fractions, axis=1))
