"""Where a model looks for the findings that readers boxed, beside the two controls."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.config import EvaluationConfig, RegionConfig
from chexradinet.dataset.dataset import Dataset
from chexradinet.evaluation.comparison import localization_intervals
from chexradinet.evaluation.localization import (
    localization_hits,
    localization_metrics,
    random_maps,
    swapped_order,
    with_controls,
)
from chexradinet.records import Box, Region
from chexradinet.regions.extract import extract_regions

Peak = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class BoxedCases:
    """Test images with a finding that a reader boxed; one case an image and finding."""

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
    patients = data.manifest["patient_id"].to_numpy()
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
    hits: dict[str, npt.NDArray[np.bool_]]
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
    """Judge the maps of boxed cases.

    Args:
        cases: N boxed cases.
        maps: The map of each case's finding, shape (N, h, w).
        image_side: Side of the model's input, in pixels; true boxes are in these pixels.
        regions: How a map becomes a region; own maps and controls alike.
        config: Its seed draws the controls, its samples the intervals.
    """
    own_regions = extract_regions(maps, image_side, regions)
    own, hits = _judge(cases, own_regions, np.arange(len(cases.findings)))
    noise = random_maps(len(maps), maps.shape[1], maps.shape[2], config.seed)
    random, _ = _judge(
        cases, extract_regions(noise, image_side, regions), np.arange(len(cases.findings))
    )
    order = swapped_order(cases.findings, cases.patients, config.seed)
    swappable = np.flatnonzero(order >= 0)
    swapped, _ = _judge(cases, [own_regions[order[case]] for case in swappable], swappable)
    metrics = with_controls(own, random, swapped)
    metrics["ci95"] = localization_intervals(
        hits, cases.findings, cases.patients, samples=config.bootstrap_samples, seed=config.seed
    )
    return Localization(metrics=metrics, hits=hits, regions=own_regions)


def _judge(
    cases: BoxedCases, regions: list[Region], which: npt.NDArray[np.int64]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.bool_]]]:
    predicted = [region.box for region in regions]
    peaks = [_peak(region) for region in regions]
    true = [cases.boxes[case] for case in which]
    findings = [cases.findings[case] for case in which]
    metrics = localization_metrics(predicted, peaks, true, findings)
    return metrics, localization_hits(predicted, peaks, true)


def _peak(region: Region) -> Peak | None:
    if region.peak_row is None or region.peak_column is None:
        return None
    return region.peak_row, region.peak_column
