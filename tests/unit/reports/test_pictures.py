"""Heatmap and boxes over a radiograph."""

import numpy as np
import pytest

from chexradinet.errors import EvaluationError
from chexradinet.records import Box
from chexradinet.reports.pictures import REGION_COLOR, TRUTH_COLOR, evidence, overlay

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 48)).astype(np.uint8)


@pytest.mark.parametrize(
    "heatmap", [None, np.zeros((4, 3)), np.full((4, 3), -1.0), np.full((4, 3), np.nan)]
)
def test_a_map_without_evidence_leaves_the_radiograph_as_it_is(heatmap: np.ndarray | None) -> None:
    drawn = overlay(IMAGE, heatmap)
    assert drawn.shape == (64, 48, 3)
    assert (drawn == IMAGE[:, :, None]).all()


def test_what_is_no_grey_radiograph_is_refused() -> None:
    with pytest.raises(EvaluationError, match="8-bit grey"):
        overlay(np.zeros((4, 4, 3), np.uint8), None)
    with pytest.raises(EvaluationError, match="8-bit grey"):
        overlay(np.zeros((4, 4)), None)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="shape \\(4,\\)"):
        overlay(IMAGE, np.zeros(4))


def test_colour_is_strongest_where_the_map_is() -> None:
    heatmap = np.full((8, 6), -1.0)
    heatmap[1, 4] = 3.0
    strength = evidence(heatmap, 64, 48)
    row, column = np.unravel_index(strength.argmax(), strength.shape)
    assert [int(row) // 8, int(column) // 8] == [1, 4]
    drawn = overlay(np.zeros((64, 48), np.uint8), heatmap)
    assert drawn[12, 36].sum() > 100
    assert drawn[40:, :].sum() == 0


def test_how_negative_the_rest_of_a_map_is_does_not_matter() -> None:
    maps = [np.full((8, 6), low) for low in (0.0, -100.0)]
    for heatmap in maps:
        heatmap[3, 3] = 1.0
    assert np.array_equal(evidence(maps[0], 64, 48), evidence(maps[1], 64, 48))


def test_boxes_are_drawn_on_their_outermost_pixels() -> None:
    drawn = overlay(np.zeros((64, 48), np.uint8), None, Box(10, 5, 30, 25))
    rows, columns = np.nonzero((drawn == REGION_COLOR).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 5, 24)
    true = overlay(np.zeros((64, 48), np.uint8), None, None, [Box(-5, -5, 64, 48)])
    assert (true[0, 0] == TRUTH_COLOR).all()


def test_small_images_are_enlarged_with_their_boxes() -> None:
    drawn = overlay(np.zeros((64, 48), np.uint8), None, Box(8, 8, 16, 16), min_side_px=96)
    assert drawn.shape == (128, 96, 3)
    rows, _ = np.nonzero((drawn == REGION_COLOR).all(axis=2))
    assert (rows.min(), rows.max()) == (16, 31)


def test_equal_input_gives_equal_bytes() -> None:
    heatmap = np.random.default_rng(1).normal(size=(6, 6))
    drawn = [overlay(IMAGE, heatmap, Box(1, 1, 9, 9), [Box(2, 2, 5, 5)]) for _ in range(2)]
    assert drawn[0].tobytes() == drawn[1].tobytes()
