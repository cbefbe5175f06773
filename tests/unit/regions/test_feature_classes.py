"""Feature classes on any mask, against the values that pyradiomics publishes for its test cases.

The 2D columns (`<case>_2d`: force2D, bin width 25, as their diagnostics say) serve the texture
classes; first-order features know no dimension, so the 3D columns serve. shape2D is published for
the slice with most of the label. The tables hold at least 12 significant digits, so 1e-6 tests our
code and not their printing. Cases lung1 and lung2 are published without an image.
"""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from chexradinet.regions import NAMES_BY_CLASS
from chexradinet.regions.feature_classes import FeatureSettings, features_of_arrays

RELATIVE_TOLERANCE = 1e-6
CASES = ("brain1", "brain2", "breast1")
TEXTURE_CLASSES = ("glcm", "glrlm", "glszm", "gldm", "ngtdm")
DEFAULT_BIN_WIDTH = 25.0


def case(folder: Path, name: str) -> tuple[NDArray[Any], NDArray[np.bool_], tuple[float, ...]]:
    image = sitk.ReadImage(str(folder / f"{name}_image.nrrd"))
    label = sitk.ReadImage(str(folder / f"{name}_label.nrrd"))
    spacing: tuple[float, ...] = image.GetSpacing()  # type: ignore[no-untyped-call]
    return sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label) == 1, spacing


def published(folder: Path, feature_class: str, column: str) -> tuple[dict[str, Any], pd.Series]:
    """Return the settings and the values of one column."""
    path = folder / "baseline" / f"baseline_{feature_class}.csv"
    values = pd.read_csv(path, index_col=0, dtype=str)[column]
    settings: dict[str, Any] = ast.literal_eval(values["diagnostics_Configuration_Settings"])
    assert settings["label"] == 1
    assert not settings["normalize"]
    assert settings["resampledPixelSpacing"] is None
    assert settings.get("binCount") is None
    return settings, values


def compare(folder: Path, name: str, feature_class: str, column: str) -> None:
    settings, expected = published(folder, feature_class, column)
    image, mask, spacing = case(folder, name)
    if feature_class == "shape2D":
        largest = mask.sum(axis=(1, 2)).argmax()
        mask[np.arange(len(mask)) != largest] = False
    feature_settings = FeatureSettings(
        bin_width=float(settings.get("binWidth", DEFAULT_BIN_WIDTH)),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        voxel_array_shift=settings.get("voxelArrayShift", 0),
    )
    found = features_of_arrays(image, mask, feature_settings, (feature_class,))
    compared = 0
    for feature in NAMES_BY_CLASS[feature_class]:
        key = f"original_{feature_class}_{feature}"
        if key in expected.index:
            value = found[f"{feature_class}_{feature}"]
            assert value == pytest.approx(float(expected[key]), rel=RELATIVE_TOLERANCE), key
            compared += 1
    assert compared == len(NAMES_BY_CLASS[feature_class])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("feature_class", TEXTURE_CLASSES)
def test_texture_has_the_published_values(shared_data: Path, name: str, feature_class: str) -> None:
    compare(shared_data / "pyradiomics_baseline" / "data", name, feature_class, f"{name}_2d")


@pytest.mark.parametrize("name", CASES)
def test_first_order_has_the_published_values(shared_data: Path, name: str) -> None:
    compare(shared_data / "pyradiomics_baseline" / "data", name, "firstorder", name)


@pytest.mark.parametrize("name", CASES)
def test_shape_has_the_published_values(shared_data: Path, name: str) -> None:
    compare(shared_data / "pyradiomics_baseline" / "data", name, "shape2D", f"{name}_shape2D")


def test_table_for_eight_bits_gives_the_same_bits_as_floating_point() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 20, 30), np.uint8)
    mask = rng.uniform(size=image.shape) < 0.6
    settings = FeatureSettings(bin_width=8.0, spacing_mm=(1.0, 1.0, 1.0))
    fast = features_of_arrays(image, mask, settings)
    assert fast == features_of_arrays(image.astype(np.float64), mask, settings)


def test_empty_mask_is_refused() -> None:
    settings = FeatureSettings(bin_width=8.0, spacing_mm=(1.0, 1.0, 1.0))
    image = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="zero-size array"):
        features_of_arrays(image, np.zeros(image.shape, bool), settings)
