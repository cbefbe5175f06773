"""Does the model look where the reader saw the finding? Accuracy of boxes, with honest controls.

A case is one image with one finding that a reader boxed. The prediction is one box, chosen without
the truth; no box is a miss. Two controls stand beside every number: `random` (a smooth random map)
and `swapped` (the map of another patient with the same finding: the usual place, nothing else).

Source: Wang et al. 2017, arXiv:1705.02315 (accuracy at an IoU threshold); Zhang et al. 2016,
arXiv:1608.00507 (pointing game, here without tolerance).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from chexradinet.errors import EvaluationError
from chexradinet.evaluation.cases import BoolArray, mean_or_none
from chexradinet.records import Box

LOCALIZATION_KEYS = ("iou_0.1", "iou_0.3", "iou_0.5", "pointing")
"""What is measured: boxes at three overlaps, and whether the map's peak lies in a true box."""
_THRESHOLDS = {"iou_0.1": 0.1, "iou_0.3": 0.3, "iou_0.5": 0.5}


def localization_hits(
    predicted: Sequence[Box | None],
    peaks: Sequence[tuple[float, float] | None],
    true: Sequence[Sequence[Box]],
) -> dict[str, BoolArray]:
    """Tell for each case and measure whether it was a hit.

    Args:
        predicted: One box a case, None where the map gave none; N of them.
        peaks: Row and column of the map's maximum, None where it has none; N of them.
        true: The reader's boxes of the case's finding, at least one; N of them. Same pixels as the
            predicted boxes.

    Returns:
        Measure to truth values of shape (N,). An overlap equal to the threshold is no hit.

    Raises:
        EvaluationError: lengths differ, or a case has no true box.
    """
    if not len(predicted) == len(peaks) == len(true):
        raise EvaluationError(
            f"{len(predicted)} boxes, {len(peaks)} peaks and {len(true)} lists of true boxes; "
            "give one of each per case"
        )
    if not all(true):
        raise EvaluationError("a case has no true box; only boxed cases can be judged")
    pairs = list(zip(predicted, true, strict=True))
    overlaps = np.array(
        [
            max(box.intersection_over_union(one) for one in boxes) if box else 0.0
            for box, boxes in pairs
        ]
    )
    hits = {key: overlaps > threshold for key, threshold in _THRESHOLDS.items()}
    hits["pointing"] = np.array(
        [
            peak is not None and any(box.contains(*peak) for box in boxes)
            for peak, boxes in zip(peaks, true, strict=True)
        ],
        dtype=np.bool_,
    )
    return hits


def localization_metrics(
    predicted: Sequence[Box | None],
    peaks: Sequence[tuple[float, float] | None],
    true: Sequence[Sequence[Box]],
    findings: Sequence[str],
) -> dict[str, Any]:
    """Return the localisation accuracy: the mean over findings of the fraction of hits.

    Args:
        predicted: As in `localization_hits`.
        peaks: As in `localization_hits`.
        true: As in `localization_hits`.
        findings: The finding of each case, N of them.

    Returns:
        `iou_0.1`, `iou_0.3`, `iou_0.5` and `pointing` in [0, 1], None where there is no case;
        `by_finding` with the same keys and `num_cases` each; `num_cases`, `num_without_box` and
        `num_findings`.

    Raises:
        EvaluationError: lengths differ, or a case has no true box.
    """
    hits = localization_hits(predicted, peaks, true)
    members = cases_by_finding(findings, len(predicted))
    by_finding = {
        finding: {
            **{key: float(hits[key][rows].mean()) for key in LOCALIZATION_KEYS},
            "num_cases": int(rows.sum()),
        }
        for finding, rows in members.items()
    }
    means = {
        key: mean_or_none([row[key] for row in by_finding.values()]) for key in LOCALIZATION_KEYS
    }
    return {
        **means,
        "num_cases": len(predicted),
        "num_without_box": sum(box is None for box in predicted),
        "num_findings": len(by_finding),
        "by_finding": by_finding,
    }


def with_controls(
    own: Mapping[str, Any], random: Mapping[str, Any], swapped: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `localization` entry of metrics.json: own numbers and prefixed controls.

    Args:
        own: Of `localization_metrics` with the model's own maps.
        random: The same with random maps.
        swapped: The same with swapped maps, over the cases where a swap exists; how many that is
            stays beside it as `swapped_num_cases`.
    """
    controls = {"random": random, "swapped": swapped}
    merged = dict(own)
    for prefix, control in controls.items():
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

    Args:
        findings: The finding of each case, N of them.
        patient_ids: The patient of each case, N of them.
        seed: Equal seeds give equal orders.

    Returns:
        Shape (N,); -1 where no other patient has the finding, so that no swap is defined.
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
