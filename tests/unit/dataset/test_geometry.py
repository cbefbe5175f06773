import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chexradinet.config import GeometryMode, PreprocessingConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.errors import ConfigError
from chexradinet.records import Box

MODES = [GeometryMode.SQUASH, GeometryMode.PAD]
sides = st.integers(32, 300)


def config(side: int, mode: GeometryMode) -> PreprocessingConfig:
    return PreprocessingConfig(image_side=side, geometry=mode)


@pytest.mark.parametrize(
    "pixels", [np.zeros((0, 5), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4))]
)
def test_what_is_no_grey_image_of_integers_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="integers of shape"):
        fit_to_model(pixels, config(32, GeometryMode.SQUASH))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_image_of_one_value_keeps_it_and_its_type(mode: GeometryMode, dtype: type) -> None:
    pixels: np.ndarray = np.full((90, 90), 117, dtype=dtype)
    fitted, _ = fit_to_model(pixels, config(40, mode))
    assert fitted.dtype == dtype
    assert fitted.shape == (40, 40)
    assert (fitted == 117).all()


def test_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    fitted, geometry = fit_to_model(pixels, config(48, GeometryMode.SQUASH))
    np.testing.assert_array_equal(fitted, pixels)
    assert (geometry.row_scale, geometry.column_scale) == (1.0, 1.0)


def test_shrinking_averages_areas() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[::2] = 100  # every other row: picking single rows would give 0 or 100
    fitted, _ = fit_to_model(pixels, config(32, GeometryMode.SQUASH))
    assert (fitted == 50).all()


def test_one_axis_may_shrink_while_the_other_grows() -> None:
    pixels = np.zeros((64, 16), np.uint16)
    pixels[::2] = 1000
    fitted, geometry = fit_to_model(pixels, config(32, GeometryMode.SQUASH))
    assert (fitted == 500).all()
    assert (geometry.row_scale, geometry.column_scale) == (2.0, 0.5)


def test_wide_image_is_padded_above_and_below() -> None:
    pixels = np.full((50, 100), 200, np.uint8)
    fitted, geometry = fit_to_model(pixels, config(40, GeometryMode.PAD))
    assert (fitted[10:30] == 200).all()
    assert (fitted[:10] == 0).all()
    assert (fitted[30:] == 0).all()
    assert geometry.to_original(Box(10, 0, 30, 40)) == Box(0, 0, 50, 100)


def test_thin_image_keeps_at_least_one_pixel() -> None:
    fitted, _ = fit_to_model(np.full((2000, 1), 5, np.uint8), config(32, GeometryMode.PAD))
    assert (fitted == 5).any(axis=0).tolist().count(True) == 1


@given(height=sides, width=sides, side=st.integers(32, 128), data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("mode", MODES)
def test_box_comes_back_within_half_a_pixel_of_the_coarser_grid(
    mode: GeometryMode, height: int, width: int, side: int, data: st.DataObject
) -> None:
    top = data.draw(st.integers(0, height - 2))
    left = data.draw(st.integers(0, width - 2))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    box = Box(top, left, bottom, right)
    pixels = np.zeros((height, width), np.uint8)
    _, geometry = fit_to_model(pixels, config(side, mode))
    there = geometry.to_model(box)
    assert there.clipped(side, side) is not None
    assert min(there.top, there.left) >= -1e-9
    assert max(there.bottom, there.right) <= side + 1e-9
    back = geometry.to_original(there)
    rows = (geometry.row_scale, geometry.row_offset)
    columns = (geometry.column_scale, geometry.column_offset)
    for name, (scale, offset) in zip(
        ("top", "bottom", "left", "right"), (rows, rows, columns, columns), strict=True
    ):
        original = getattr(box, name)
        assert abs(getattr(back, name) - original) < 1e-6
        # The same for a box on whole model pixels, as regions are.
        whole = round(getattr(there, name)) * scale + offset
        assert abs(whole - original) <= 0.5 * max(scale, 1.0) + 1e-6


@given(height=sides, width=sides, side=st.integers(32, 128), data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("mode", MODES)
def test_drawn_square_lands_where_the_record_says(
    mode: GeometryMode, height: int, width: int, side: int, data: st.DataObject
) -> None:
    length = data.draw(st.integers(8, min(height, width) // 2))
    top = data.draw(st.integers(0, height - length))
    left = data.draw(st.integers(0, width - length))
    pixels = np.zeros((height, width), np.uint8)
    pixels[top : top + length, left : left + length] = 255
    fitted, geometry = fit_to_model(pixels, config(side, mode))
    expected = geometry.to_model(Box(top, left, top + length, left + length))
    mass = fitted.astype(float) / fitted.sum()
    centre = (mass.sum(1) @ (np.arange(side) + 0.5), mass.sum(0) @ (np.arange(side) + 0.5))
    # Half a pixel of the coarser grid: of the model where it is coarser, else of the original.
    allowed_rows = 0.5 * max(1.0, 1 / geometry.row_scale)
    allowed_columns = 0.5 * max(1.0, 1 / geometry.column_scale)
    assert abs(centre[0] - (expected.top + expected.bottom) / 2) <= allowed_rows
    assert abs(centre[1] - (expected.left + expected.right) / 2) <= allowed_columns
