"""What a round is judged by while the loop runs: the validation split alone, and no boxes.

A round's selection value is its mean AUROC plus a tenth of the faithfulness of its regions (ADR
0006): of two rounds that classify alike, the one whose regions hold more of the evidence is kept.
Faithfulness joins the insertion and deletion measures of Petsiuk et al. 2018, arXiv:1806.07421.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.config import RegionConfig
from chexradinet.dataset.format import Dataset
from chexradinet.errors import SourceError
from chexradinet.model.inference import Predictions, predict
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.records import Box, Split
from chexradinet.regions.extract import extract_region
from chexradinet.results.classification import classification_metrics

FAITHFULNESS_WEIGHT = 0.1
"""Part of the faithfulness in the selection value."""

MAX_FAITHFULNESS_CASES = 512
"""Most labelled findings that faithfulness is measured on; the first in data-set order."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Predictions on the validation split and what follows from them."""

    rows: npt.NDArray[np.int64]
    """Data-set rows of the validation split, shape (V,)."""
    predictions: Predictions
    """Logits (V, F), embeddings (V, C) and maps (V, F, h, w) of those rows."""
    metrics: dict[str, Any]
    """`mean_auroc` and its companions, `faithfulness` and `selection`, ready for JSON."""


def validate(network: ChexRadiNet, dataset: Dataset, config: RegionConfig) -> Validation:
    """Judge a network on the validation split.

    Raises:
        SourceError: the data set has no validation image.
    """
    rows = dataset.rows(Split.VALIDATION)
    if not len(rows):
        raise SourceError(
            "the data set has no validation image, so rounds cannot be compared; "
            "ingest it again with a validation fraction above 0"
        )
    predictions = predict(network, dataset.images, rows, maps=True)
    metrics = classification_metrics(
        dataset.labels[rows], predictions.logits, dataset.info.findings
    )
    faithfulness = region_faithfulness(network, dataset, rows, predictions, config)
    mean_auroc = metrics["mean_auroc"]
    selection = None
    if mean_auroc is not None:
        selection = mean_auroc + FAITHFULNESS_WEIGHT * (faithfulness or 0.0)
    metrics |= {"faithfulness": faithfulness, "selection": selection, "num_images": len(rows)}
    return Validation(rows=rows, predictions=predictions, metrics=metrics)


def region_faithfulness(
    network: ChexRadiNet,
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    predictions: Predictions,
    config: RegionConfig,
) -> float | None:
    """Return how much of a finding's evidence lies in its region, in [-1, 1].

    For each labelled positive finding: the probability when only the region is kept, less the
    probability when only the region is removed; what is removed is blurred beyond recognition. A
    map without a region counts as 0. Returns None where no finding is positive.
    """
    labels = dataset.labels[rows]
    cases = np.argwhere(labels == 1)[:MAX_FAITHFULNESS_CASES]
    if not len(cases):
        return None
    kept, removed, columns = [], [], []
    for position, column in cases:
        region = extract_region(
            predictions.maps[position, column], dataset.info.preprocessing.image_side, config
        )
        if region.box is None:
            continue
        image = dataset.images(rows[position : position + 1])[0]
        inside, outside = _split_at(image, region.box)
        kept.append(inside)
        removed.append(outside)
        columns.append(column)
    if not columns:
        return 0.0
    probe = np.stack(kept + removed)
    logits = predict(network, lambda wanted: probe[wanted], np.arange(len(probe))).logits
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -50, 50)))
    count = len(columns)
    picked = scores[np.arange(2 * count), np.tile(columns, 2)]
    return float((picked[:count] - picked[count:]).sum() / len(cases))


def _split_at(
    image: npt.NDArray[np.uint8], box: Box
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the image with all but the box blurred, and with the box alone blurred."""
    blurred = np.asarray(
        cv2.GaussianBlur(image, (0, 0), sigmaX=image.shape[0] / 12), dtype=np.uint8
    )
    inside_box = np.zeros(image.shape, dtype=np.bool_)
    inside_box[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    return np.where(inside_box, image, blurred), np.where(inside_box, blurred, image)
