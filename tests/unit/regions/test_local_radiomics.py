"""Dense radiomics: pyradiomics' values, window by window, and known answers."""

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from radiomics.glcm import RadiomicsGLCM

from chexradinet.errors import ConfigError
from chexradinet.regions.feature_classes import FeatureSettings, features_of_arrays
from chexradinet.regions.local_radiomics import (
    BIN_WIDTH,
    LOCAL_FEATURES,
    local_hog,
    local_radiomics,
)

SETTINGS = FeatureSettings(bin_width=BIN_WIDTH, spacing_mm=(1, 1, 1))


def _image(side: int, seed: int) -> NDArray[np.uint8]:
    """Return noise in some places and flat areas in others."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1)
    noise = generator.normal(0, 30, (side, side)) * (generator.random((side, side)) < 0.5)
    image = np.clip(coarse + noise, 0, 255).astype(np.uint8)
    image[: side // 2, : side // 3] = 77
    return image


def _window(image: NDArray[np.uint8], row: int, column: int, stride: int) -> NDArray[np.uint8]:
    padded = np.pad(image, stride // 2, mode="edge")
    side = 2 * stride
    return padded[row * stride : row * stride + side, column * stride : column * stride + side]


def _measured(window: NDArray[np.uint8], stride: int) -> dict[str, float]:
    """Return pyradiomics' values of every feature that it has."""
    mask = np.ones((1, *window.shape), bool)
    found = features_of_arrays(window[None], mask, SETTINGS, ("firstorder", "glcm"))
    far = RadiomicsGLCM(
        sitk.GetImageFromArray(window[None].astype(float)),
        sitk.GetImageFromArray(mask.astype(np.uint8)),
        binWidth=BIN_WIDTH,
        distances=[3],
        force2D=True,
        force2Ddimension=0,
    )
    for name in ("Contrast", "Idm", "Correlation"):
        far.enableFeatureByName(name)
    found |= {f"glcm3_{name}": float(value) for name, value in far.execute().items()}
    cell = window[stride // 2 : -stride // 2, stride // 2 : -stride // 2]
    inner = features_of_arrays(
        cell[None], mask[:, :stride, :stride], SETTINGS, ("firstorder", "glcm")
    )
    return found | {f"cell_{name}": value for name, value in inner.items()}


@pytest.mark.parametrize("stride", [8, 16])
def test_values_are_those_of_pyradiomics_on_each_window(stride: int) -> None:
    side = 12 * stride
    image = _image(side, stride)
    found = local_radiomics(image, stride)
    assert np.isfinite(found).all()
    shared = [name for name in LOCAL_FEATURES if not name.startswith(("gradient", "lbp"))]
    for row, column in np.random.default_rng(1).integers(0, 12, (20, 2)):
        values = _measured(_window(image, row, column, stride), stride)
        ours = [found[LOCAL_FEATURES.index(name), row, column] for name in shared]
        theirs = [values[name] for name in shared]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_simpleitk() -> None:
    image = _image(96, 3)
    padded = sitk.GetImageFromArray(np.pad(image, 4, mode="edge").astype(float))
    sought: Any = sitk.GradientMagnitudeImageFilter()  # type: ignore[no-untyped-call]
    magnitude = sitk.GetArrayFromImage(sought.Execute(padded))
    found = local_radiomics(image, 8)
    window = magnitude[24:40, 40:56]
    np.testing.assert_allclose(
        [found[LOCAL_FEATURES.index(f"gradient_{name}"), 3, 5] for name in ("Mean", "Variance")],
        [window.mean(), window.var()],
        rtol=1e-5,
    )


def test_lone_bright_pixel_is_brighter_than_its_eight_neighbours() -> None:
    image = np.zeros((64, 64), np.uint8)
    image[28, 28] = 200
    found = local_radiomics(image, 8)
    assert found[LOCAL_FEATURES.index("lbp_Mean"), 3, 3] == pytest.approx(8 / 256)


def test_flat_image_has_finite_features() -> None:
    found = local_radiomics(np.full((64, 64), 255, np.uint8), 8)
    values = dict(zip(LOCAL_FEATURES, found[:, 2, 2].tolist(), strict=True))
    assert values["firstorder_Variance"] == values["glcm_Contrast"] == values["lbp_Mean"] == 0
    assert values["glcm_Correlation"] == values["firstorder_Uniformity"] == 1


@pytest.mark.parametrize("stride", [4, 9, 16])
def test_grid_that_does_not_fit_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match="stride"):
        local_radiomics(np.zeros((72, 72), np.uint8), stride)


def test_edge_has_one_orientation() -> None:
    image = np.zeros((32, 32), np.uint8)
    image[:, 20:] = 250
    found = local_hog(image, 8)
    assert found[0, 1, 2] == pytest.approx(1)
    assert found.sum() == pytest.approx(4)
