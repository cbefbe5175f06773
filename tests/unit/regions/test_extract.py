"""From a heatmap to a region, and which findings guide training."""

import numpy as np
import pytest
from numpy.typing import NDArray

from chexradinet.config import RegionConfig
from chexradinet.errors import MismatchError
from chexradinet.records import Box, RegionStatus
from chexradinet.regions.extract import extract_region, extract_regions, guiding_findings

SIDE = 96
CELLS = 12
CELL_PX = SIDE // CELLS
CONFIG = RegionConfig()


def drawn(top: int, left: int, bottom: int, right: int, value: float = 1.0) -> NDArray[np.float64]:
    """Return a map that is `value` in a rectangle of cells and 0 elsewhere."""
    heatmap = np.zeros((CELLS, CELLS))
    heatmap[top:bottom, left:right] = value
    return heatmap


def box_of(heatmap: NDArray[np.float64], config: RegionConfig = CONFIG) -> Box:
    region = extract_region(heatmap, SIDE, config)
    assert region.status == RegionStatus.OK
    assert region.box is not None
    return region.box


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_map_points_nowhere(value: float) -> None:
    region = extract_region(np.full((CELLS, CELLS), value), SIDE, CONFIG)
    assert region.status == RegionStatus.CONSTANT
    assert region.box is None
    assert region.peak_row is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_rejects_the_map(bad: float) -> None:
    heatmap = drawn(2, 2, 5, 5)
    heatmap[0, 0] = bad
    region = extract_region(heatmap, SIDE, CONFIG)
    assert region.status == RegionStatus.NOT_FINITE
    assert region.box is None
    assert region.peak_row is None


def test_all_negative_map_has_no_evidence_but_a_peak() -> None:
    heatmap = np.full((CELLS, CELLS), -2.0)
    heatmap[3, 7] = -0.5
    region = extract_region(heatmap, SIDE, CONFIG)
    assert region.status == RegionStatus.NO_EVIDENCE
    assert region.box is None
    assert region.peak_row is not None
    assert region.peak_column is not None
    assert abs(region.peak_row - 3.5 * CELL_PX) <= 1
    assert abs(region.peak_column - 7.5 * CELL_PX) <= 1


def test_map_that_is_zero_at_best_has_no_evidence() -> None:
    heatmap = np.zeros((CELLS, CELLS))
    heatmap[0, 0] = -1.0
    assert extract_region(heatmap, SIDE, CONFIG).status == RegionStatus.NO_EVIDENCE


def test_full_image_plateau_is_rejected_not_boxed_whole() -> None:
    heatmap = np.ones((CELLS, CELLS))
    heatmap[0, 0] = 0.9
    region = extract_region(heatmap, SIDE, CONFIG)
    assert region.status == RegionStatus.WHOLE_IMAGE
    assert region.box is None
    assert region.peak_row is not None


def test_single_hot_cell_is_boxed_around_its_centre() -> None:
    box = box_of(drawn(5, 8, 6, 9))
    assert box.contains(5.5 * CELL_PX, 8.5 * CELL_PX)
    assert box.bottom - box.top <= 2 * CELL_PX
    assert box.right - box.left <= 2 * CELL_PX


def test_component_smaller_than_the_limit_is_rejected() -> None:
    config = RegionConfig(min_area_px=200)
    region = extract_region(drawn(5, 8, 6, 9), SIDE, config)
    assert region.status == RegionStatus.TOO_SMALL
    assert region.box is None
    assert region.peak_row is not None


def test_component_that_the_border_leaves_too_narrow_is_rejected() -> None:
    config = RegionConfig(border_px=8, blur_px=1)
    assert extract_region(drawn(0, 4, 1, 8), SIDE, config).status == RegionStatus.TOO_SMALL


@pytest.mark.parametrize(("top", "left", "bottom", "right"), [(2, 3, 6, 9), (5, 1, 11, 4)])
def test_drawn_rectangle_is_found_within_one_cell(
    top: int, left: int, bottom: int, right: int
) -> None:
    box = box_of(drawn(top, left, bottom, right))
    found = np.array([box.top, box.left, box.bottom, box.right])
    assert np.abs(found - CELL_PX * np.array([top, left, bottom, right])).max() <= CELL_PX / 2


def test_shifted_map_gives_the_shifted_box_and_peak() -> None:
    texture = np.random.default_rng(0).uniform(0.7, 1.0, (3, 4))
    one, other = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    one[2:5, 3:7] = texture
    other[4:7, 4:8] = texture
    first, second = (extract_region(heatmap, SIDE, CONFIG) for heatmap in (one, other))
    assert first.box is not None
    assert second.box is not None
    assert second.box.top - first.box.top == 2 * CELL_PX
    assert second.box.bottom - first.box.bottom == 2 * CELL_PX
    assert second.box.left - first.box.left == CELL_PX
    assert second.box.right - first.box.right == CELL_PX
    assert second.peak_row == (first.peak_row or 0.0) + 2 * CELL_PX
    assert second.peak_column == (first.peak_column or 0.0) + CELL_PX


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_scale_of_the_map_does_not_matter(factor: float) -> None:
    heatmap = np.random.default_rng(1).normal(size=(CELLS, CELLS))
    assert extract_region(heatmap * factor, SIDE, CONFIG) == extract_region(heatmap, SIDE, CONFIG)


def test_negative_evidence_elsewhere_does_not_change_the_box() -> None:
    heatmap = drawn(2, 3, 6, 9)
    contradicted = heatmap.copy()
    contradicted[9:, :] = -50.0
    contradicted[2:6, 9] = -50.0
    assert box_of(contradicted) == box_of(heatmap)


def test_component_with_the_highest_mean_wins_over_a_larger_one() -> None:
    heatmap = drawn(0, 0, 7, 5, 0.8)
    heatmap[9:11, 9:11] = 1.0
    assert box_of(heatmap).contains(10 * CELL_PX, 10 * CELL_PX)
    heatmap[9:11, 9:11] = 0.75
    assert box_of(heatmap).contains(3 * CELL_PX, 2 * CELL_PX)


def test_cells_that_touch_at_a_corner_are_one_component() -> None:
    heatmap = drawn(2, 2, 4, 4) + drawn(4, 4, 6, 6)
    # At half the maximum and unblurred, the two meet in a corner of a pixel and nowhere else.
    box = box_of(heatmap, RegionConfig(region_threshold=0.5, blur_px=1))
    assert box.contains(2.5 * CELL_PX, 2.5 * CELL_PX)
    assert box.contains(5.5 * CELL_PX, 5.5 * CELL_PX)


@pytest.mark.parametrize("border_px", [1, 4])
def test_box_leaves_the_border_free(border_px: int) -> None:
    box = box_of(drawn(0, 0, 4, CELLS), RegionConfig(border_px=border_px))
    assert (box.top, box.left, box.right) == (border_px, border_px, SIDE - border_px)


def test_higher_threshold_never_enlarges_the_box() -> None:
    rows = np.arange(CELLS)
    bump = np.exp(-((rows[:, None] - 5) ** 2 + (rows[None, :] - 6) ** 2) / 8)
    areas = [
        box_of(bump, RegionConfig(region_threshold=value)).area_px for value in (0.3, 0.5, 0.7, 0.9)
    ]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[-1]


def test_every_map_of_a_batch_is_read_as_if_alone() -> None:
    maps = np.random.default_rng(2).normal(size=(4, CELLS, CELLS)).astype(np.float16)
    maps[1] = 0
    regions = extract_regions(maps, SIDE, CONFIG)
    assert regions == [extract_region(heatmap, SIDE, CONFIG) for heatmap in maps]
    assert regions[1].status == RegionStatus.CONSTANT


def test_every_labelled_positive_guides_and_else_the_highest_score() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [np.nan, 0, np.nan], [np.nan, 1, 0]])
    scores = np.array([[0.0, 9.0, 0.0], [0.1, 0.3, 0.2], [0.1, 0.2, 0.9], [5.0, 0.0, 5.0]])
    assert guiding_findings(labels, scores) == [(0, 0), (0, 2), (1, 1), (2, 2), (3, 1)]


def test_first_of_equal_scores_guides() -> None:
    assert guiding_findings(np.zeros((1, 3)), np.array([[0.5, 0.7, 0.7]])) == [(0, 1)]


def test_score_that_is_not_finite_counts_as_lowest() -> None:
    scores = np.array([[np.nan, -4.0], [np.nan, np.nan]])
    assert guiding_findings(np.zeros((2, 2)), scores) == [(0, 1), (1, 0)]


def test_no_image_guides_nothing() -> None:
    assert guiding_findings(np.zeros((0, 3)), np.zeros((0, 3))) == []


def test_given_arrays_stay_as_they_are() -> None:
    labels, scores = np.zeros((2, 2)), np.array([[np.nan, 1.0], [2.0, 1.0]])
    before = labels.copy(), scores.copy()
    guiding_findings(labels, scores)
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(scores, before[1])


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2,)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError, match="same data set"):
        guiding_findings(np.zeros((2, 3)), np.zeros(shape))
