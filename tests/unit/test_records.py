"""Boxes and the geometry between model pixels and original pixels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexradinet.errors import ConfigError
from chexradinet.records import Box, Geometry


@pytest.mark.parametrize("sides", [(0, 0, 0, 5), (0, 5, 3, 5), (4, 0, 2, 5), (0, 0, math.nan, 5)])
def test_a_box_without_area_is_refused(sides: tuple[float, float, float, float]) -> None:
    with pytest.raises(ConfigError, match="has no area"):
        Box(*sides)


def test_overlap_of_half_a_box_is_a_third() -> None:
    assert Box(0, 0, 10, 10).intersection_over_union(Box(0, 5, 10, 15)) == pytest.approx(1 / 3)


def test_boxes_that_touch_do_not_overlap() -> None:
    assert Box(0, 0, 10, 10).intersection_over_union(Box(0, 10, 10, 20)) == 0.0


def test_a_box_is_half_open() -> None:
    box = Box(2, 2, 4, 4)
    assert box.contains(2, 2)
    assert not box.contains(4, 3)


def test_a_box_outside_the_image_leaves_nothing() -> None:
    assert Box(10, 10, 12, 12).clipped(8, 8) is None
    assert Box(-1, -1, 12, 4).clipped(8, 8) == Box(0, 0, 8, 4)


def test_a_box_of_a_squashed_image_maps_to_original_pixels() -> None:
    geometry = Geometry(original_height=2000, original_width=1000, row_scale=20, column_scale=10)
    assert geometry.to_original(Box(10, 10, 20, 30)) == Box(200, 100, 400, 300)


@given(
    scale=st.floats(0.1, 40),
    offset=st.floats(-500, 500),
    top=st.floats(0, 200),
    height=st.floats(1, 100),
)
def test_a_box_maps_to_original_pixels_and_back(
    scale: float, offset: float, top: float, height: float
) -> None:
    geometry = Geometry(
        original_height=4000,
        original_width=4000,
        row_scale=scale,
        column_scale=2 * scale,
        row_offset=offset,
        column_offset=-offset,
    )
    box = Box(top, top, top + height, top + 2 * height)
    back = geometry.to_model(geometry.to_original(box))
    for side in ("top", "left", "bottom", "right"):
        assert getattr(back, side) == pytest.approx(getattr(box, side), abs=1e-6)


def test_a_geometry_survives_json() -> None:
    geometry = Geometry(
        original_height=10, original_width=20, row_scale=1, column_scale=2, row_spacing_mm=0.143
    )
    assert Geometry(**geometry.as_dict()) == geometry
