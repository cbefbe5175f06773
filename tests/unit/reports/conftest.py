"""A full metrics document with known numbers, for the reports."""

from typing import Any

import numpy as np
import pytest

from chexradinet.evaluation import metrics_document, round_entry
from chexradinet.evaluation.calibration import calibration_metrics, operating_threshold
from chexradinet.evaluation.classification import (
    bootstrap_intervals,
    classification_metrics,
    paired_bootstrap_difference,
    roc_points,
)
from chexradinet.evaluation.localization import (
    localization_hits,
    localization_intervals,
    localization_metrics,
    with_controls,
)
from chexradinet.records import Box, Region, RegionStatus

FINDINGS = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Hernia",
]
NUM_IMAGES = 300


def _scores(labels: np.ndarray, strength: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    scores: np.ndarray = 1 / (1 + np.exp(-(noise + strength * np.nan_to_num(labels) - 1)))
    return scores


def _regions(num: int, spread: float, seed: int) -> list[Region]:
    offsets = np.random.default_rng(seed).normal(scale=spread, size=(num, 2))
    boxes = [Box(30 + y, 40 + x, 60 + y, 80 + x) for y, x in offsets]
    found = [
        Region(status=RegionStatus.OK, box=box, peak_row=box.top + 15, peak_column=box.left + 20)
        for box in boxes
    ]
    return [Region(status=RegionStatus.NO_EVIDENCE), *found[1:]]


def _localization(cases: list[str], spread: float, seed: int) -> tuple[dict[str, Any], Any]:
    truth = [[Box(30, 40, 60, 80)]] * len(cases)
    own, random, swapped = (
        _regions(len(cases), *drawn) for drawn in ((spread, seed), (60, 1), (25, 2))
    )
    found = [localization_metrics(regions, truth, cases) for regions in (own, random, swapped)]
    return with_controls(*found), localization_hits(own, truth)


@pytest.fixture(scope="session")
def metrics() -> dict[str, Any]:
    """Return what a run of three rounds with both arms gives; Hernia has no positive."""
    generator = np.random.default_rng(0)
    labels = (generator.random((NUM_IMAGES, len(FINDINGS))) < 0.2).astype(float)
    labels[:, -1] = 0
    patients = np.arange(NUM_IMAGES) // 2
    views = generator.choice(["PA", "AP"], NUM_IMAGES)
    cases = [FINDINGS[index % 5] for index in range(80)]
    rounds, located = [], {}
    for number, (arm, spread) in enumerate(
        (("none", 20), ("sharpen+contrastive", 9), ("sharpen+contrastive", 8))
    ):
        localization, hits = _localization(cases, spread, 10 + number)
        located[number] = (localization, hits)
        scored = classification_metrics(labels, _scores(labels, 1 + 0.4 * number, number), FINDINGS)
        rounds.append(
            round_entry(
                number=number, guidance=arm, classification=scored, localization=localization
            )
        )
    scores = _scores(labels, 1.8, 3)
    columns = list(enumerate(FINDINGS))
    test = {
        **classification_metrics(labels, scores, FINDINGS),
        "localization": located[2][0],
        "ci95": {
            **bootstrap_intervals(labels, scores, patients, FINDINGS, 200),
            "localization": localization_intervals(
                located[2][1], cases, list(range(80)), None, 200
            ),
        },
        **calibration_metrics(labels, scores, FINDINGS),
        "roc": {name: roc_points(labels[:, i], scores[:, i], 60) for i, name in columns},
        "operating_points": {
            name: operating_threshold(labels[:, i], scores[:, i], 0.9) for i, name in columns
        },
        "by_view": {
            view: {
                **classification_metrics(labels[views == view], scores[views == view], FINDINGS),
                "num_images": int((views == view).sum()),
            }
            for view in ("PA", "AP")
        },
    }
    arms = {}
    case_patients = list(range(len(cases)))
    for arm, strength, spread, seed in (("control", 1.75, 22, 30), ("permuted", 1.8, 9, 31)):
        localization, hits = _localization(cases, spread, seed)
        other = _scores(labels, strength, seed)
        guidance = "none" if arm == "control" else "sharpen+contrastive@permuted"
        difference = {
            "mean_auroc": paired_bootstrap_difference(labels, scores, other, patients, 200),
            **localization_intervals(located[2][1], cases, case_patients, hits, 200),
        }
        entry = round_entry(
            number=2,
            guidance=guidance,
            classification=classification_metrics(labels, other, FINDINGS),
            localization=localization,
        )
        arms[arm] = {"rounds": [entry], "difference": difference}
    line = "phantom (data 0123456789ab), {} split: 300 images of 150 patients"
    protocol = {
        "rounds": line.format("validation") + "; round chosen by mean AUROC",
        "test": line.format("test") + "; nothing was chosen on it",
        "localization": "80 boxed cases of the test split; region threshold from validation",
        "calibration": "fitted on the validation split",
    }
    return metrics_document(
        rounds=rounds,
        best_round=2,
        test=test,
        protocol=protocol,
        arms=arms,
        findings=FINDINGS,
    )
