"""What a report shows beside its numbers: radiographs with maps, and radiomics that differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexradinet.config import RadiomicsConfig, RegionConfig
from chexradinet.dataset.dataset import Dataset
from chexradinet.evaluation.calibration import Calibration, apply_calibration
from chexradinet.evaluation.evaluator import EvaluatedModel, maps_of
from chexradinet.records import Box
from chexradinet.regions.extract import extract_regions
from chexradinet.regions.feature_names import FEATURE_NAMES
from chexradinet.regions.tables import regions_table
from chexradinet.reports.contrast import FeatureContrast, feature_contrast
from chexradinet.reports.evaluation import PanelCase

MAX_PANEL_CASES = 12
"""Radiographs in the report's panel."""

MAX_CONTRAST_IMAGES = 400
"""Test images whose features are contrasted; the first in data-set order."""

_STATISTICS_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Pictures and features for the report."""

    panel: list[PanelCase]
    """A few test images, for each finding the surest true and the least sure true one."""
    contrast: FeatureContrast
    """Features of the regions of the highest-scoring finding, one region an image."""


def report_evidence(
    model: EvaluatedModel,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    calibration: Calibration,
    radiomics: RadiomicsConfig,
    regions: RegionConfig,
) -> Evidence:
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
    return Evidence(
        panel=_panel(model, data, rows, probabilities, regions),
        contrast=_contrast(model, data, rows[:MAX_CONTRAST_IMAGES], radiomics, regions),
    )


def image_statistics(
    fetch: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]], rows: npt.NDArray[np.int64]
) -> Mapping[str, npt.NDArray[np.float64]]:
    """Return mean and standard deviation of the model pixels of each row, on the 8-bit range."""
    means, deviations = [], []
    for start in range(0, len(rows), _STATISTICS_BATCH):
        images = fetch(rows[start : start + _STATISTICS_BATCH])
        means.append(images.mean(axis=(1, 2), dtype=np.float64))
        deviations.append(images.std(axis=(1, 2), dtype=np.float64))
    return {"mean": np.concatenate(means), "std": np.concatenate(deviations)}


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
    image_ids = data.manifest["image_id"].to_numpy()
    return [
        PanelCase(
            image=data.images(chosen[index : index + 1])[0],
            heatmap=maps[index],
            region=found[index].box,
            true_boxes=_true_boxes(data, int(chosen[index]), data.info.findings[column]),
            image_id=str(image_ids[chosen[index]]),
            finding=data.info.findings[column],
            probability=float(probabilities[position, column]),
            label=float(labels[position, column]),
        )
        for index, (position, column) in enumerate(cases)
    ]


def _true_boxes(data: Dataset, row: int, finding: str) -> list[Box]:
    return [labelled.box for labelled in data.boxes(row) if labelled.finding == finding]


def _contrast(
    model: EvaluatedModel,
    data: Dataset,
    rows: npt.NDArray[np.int64],
    radiomics: RadiomicsConfig,
    regions: RegionConfig,
) -> FeatureContrast:
    """Contrast the regions of the highest-scoring finding: no label has a say in where they are."""
    # Here, so that whoever reads only panels needs no pyradiomics.
    from chexradinet.regions.radiomics import extract_features

    columns = model.logits[: len(rows)].argmax(axis=1).astype(np.int64)
    maps = maps_of(model.network, data, rows, columns)
    table = regions_table(
        data.manifest["image_id"].to_numpy()[rows].tolist(),
        [data.info.findings[column] for column in columns],
        model.logits[np.arange(len(rows)), columns].tolist(),
        extract_regions(maps, data.info.preprocessing.image_side, regions),
    )
    features = extract_features(data.images, table, rows, radiomics, num_workers=1)
    return feature_contrast(
        features[list(FEATURE_NAMES)].to_numpy(dtype=np.float64),
        FEATURE_NAMES,
        data.labels[rows],
        data.info.findings,
    )
