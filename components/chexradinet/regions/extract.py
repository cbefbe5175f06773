"""Heatmap to region: rectify, enlarge, blur, threshold, connected component, tightest box.

Source: the steps follow Han et al. 2021 (arXiv:2011.12506), whose abstract leaves the details open.
Unlike min-max scaling, anchoring at zero evidence keeps weak maps from boxing half the image, and
no ground truth takes part in the choice (ADR 0003).
"""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexradinet.config import RegionConfig
from chexradinet.errors import MismatchError
from chexradinet.records import Box, Region, RegionStatus


def extract_regions(maps: ArrayLike, image_side: int, config: RegionConfig) -> list[Region]:
    """Return one region per heatmap; see `extract_region`.

    Args:
        maps: Heatmaps at network resolution, shape (n, h, w).
        image_side: Side of the model's square image, in pixels.
        config: Threshold, blur and limits.
    """
    return [extract_region(heatmap, image_side, config) for heatmap in np.asarray(maps)]


def extract_region(heatmap: ArrayLike, image_side: int, config: RegionConfig) -> Region:
    """Return where a heatmap looked.

    Neither a positive factor nor negative evidence elsewhere changes the answer.

    Args:
        heatmap: Class activation map at network resolution, shape (h, w), any real values; positive
            values speak for the finding.
        image_side: Side of the model's square image, in pixels.
        config: Threshold, blur and limits.

    Returns:
        A region in model pixels. `peak_row` and `peak_column` are the centre of the pixel with the
        map's maximum, given whenever the map is finite and not constant; `box` leaves
        `config.border_px` pixels of the image free and is given when the status is `OK`.
    """
    evidence = np.asarray(heatmap, dtype=np.float64)
    if not np.isfinite(evidence).all():
        return Region(status=RegionStatus.NOT_FINITE)
    if evidence.max() == evidence.min():
        return Region(status=RegionStatus.CONSTANT)
    if evidence.max() <= 0:
        row, column = _peak(_enlarged(evidence / -evidence.min(), image_side))
        return Region(status=RegionStatus.NO_EVIDENCE, peak_row=row, peak_column=column)
    # Relative to the maximum, so that maps of any magnitude round alike.
    enlarged = _enlarged(np.maximum(evidence, 0.0) / evidence.max(), image_side)
    row, column = _peak(enlarged)
    status, box = _brightest_component(enlarged, config)
    return Region(status=status, box=box, peak_row=row, peak_column=column)


def _enlarged(evidence: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    # cv2 aligns corners of pixels, not their centres: a cell covers exactly its part of the image.
    resized = cv2.resize(evidence, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float64)


def _peak(enlarged: NDArray[np.float64]) -> tuple[float, float]:
    row, column = np.unravel_index(int(enlarged.argmax()), enlarged.shape)
    return float(row) + 0.5, float(column) + 0.5


def _brightest_component(
    enlarged: NDArray[np.float64], config: RegionConfig
) -> tuple[RegionStatus, Box | None]:
    """Return the box of the 8-connected component with the highest mean, or why there is none."""
    side = enlarged.shape[0]
    kernel = (config.blur_px, config.blur_px)
    blurred = np.asarray(cv2.GaussianBlur(enlarged, kernel, 0), dtype=np.float64)
    bright = (blurred >= config.region_threshold * blurred.max()).astype(np.uint8)
    # Only as much of the image as is bright is searched, and extents are taken of one component:
    # statistics of all over the whole image took as long as everything else together.
    first_column, first_row, columns, rows = cv2.boundingRect(bright)
    part = slice(first_row, first_row + rows), slice(first_column, first_column + columns)
    _, labels = cv2.connectedComponentsWithAlgorithm(bright[part], 8, cv2.CV_32S, cv2.CCL_WU)
    inside = labels > 0
    members = labels[inside]
    areas = np.bincount(members)
    sums = np.bincount(members, weights=blurred[part][inside])
    # Label 0 is everything below the threshold.
    by_mean = sorted(range(1, len(areas)), key=lambda label: -sums[label] / areas[label])
    for label in by_mean:
        extent = cv2.boundingRect((labels == label).view(np.uint8))
        left, top, width, height = extent[0] + first_column, extent[1] + first_row, *extent[2:]
        box = _inside(top, left, top + height, left + width, side, config)
        if areas[label] < config.min_area_px or box is None:
            continue
        if width * height > config.max_area_fraction * side * side:
            return RegionStatus.WHOLE_IMAGE, None
        return RegionStatus.OK, box
    return RegionStatus.TOO_SMALL, None


def _inside(
    top: int, left: int, bottom: int, right: int, side: int, config: RegionConfig
) -> Box | None:
    """Return the box clipped to leave the border free, or None if it is then too small."""
    first, last = config.border_px, side - config.border_px
    top, left = max(top, first), max(left, first)
    bottom, right = min(bottom, last), min(right, last)
    if min(bottom - top, right - left) < config.min_side_px:
        return None
    return Box(float(top), float(left), float(bottom), float(right))


def guiding_findings(labels: ArrayLike, scores: ArrayLike) -> list[tuple[int, int]]:
    """Return the (row, finding column) pairs whose maps guide training, by row, then column.

    Args:
        labels: 1 present, 0 absent, NaN unknown, shape (N, F).
        scores: Logits or probabilities, shape (N, F). A score that is not finite counts as lowest.

    Returns:
        Every labelled positive finding of a row; for a row with none, the finding with the highest
        score (the first of equals). So every row appears at least once.

    Raises:
        MismatchError: the two arrays differ in shape, or have no finding.
    """
    known, believed = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if known.shape != believed.shape or known.ndim != 2 or known.shape[1] == 0:
        raise MismatchError(
            f"labels have shape {known.shape}, scores {believed.shape}; both must be "
            "(images, findings) with at least one finding: use scores of the same data set"
        )
    guiding = known == 1
    unlabelled = ~guiding.any(axis=1)
    finite = np.where(np.isfinite(believed), believed, -np.inf)
    guiding[unlabelled, finite[unlabelled].argmax(axis=1)] = True
    return [(int(row), int(column)) for row, column in np.argwhere(guiding)]
