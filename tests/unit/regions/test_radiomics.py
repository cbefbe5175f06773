"""Features of a region, their statuses, and their normalisation."""

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import radiomics
from numpy.typing import NDArray

from chexradinet.config import RadiomicsConfig
from chexradinet.errors import MismatchError, TrainingError
from chexradinet.records import Box, FeatureStatus, Region, RegionStatus
from chexradinet.regions import (
    FEATURE_COLUMNS,
    FEATURE_NAMES,
    NAMES_BY_CLASS,
    FeatureRow,
    regions_table,
)
from chexradinet.regions import feature_classes as measured_module
from chexradinet.regions.feature_classes import features_of_arrays
from chexradinet.regions.radiomics import (
    crop_of,
    extract_features,
    features_if_installed,
    fit_normalisation,
)

SIDE = 96
CONFIG = RadiomicsConfig()
RELATIVE_TOLERANCE = 1e-6
Reference = Callable[..., NDArray[np.float64]]


def features_of(image: NDArray[np.uint8], box: Box, config: RadiomicsConfig) -> FeatureRow:
    return features_if_installed(crop_of(image, box), config)


def smooth_image(seed: int = 0) -> NDArray[np.uint8]:
    """Return noise with structure, from dark to bright."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), 5))
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 250 + noise * 4
    return np.asarray(np.clip(smooth, 0, 255), dtype=np.uint8)


def synthetic_image(kind: str) -> NDArray[np.uint8]:
    columns = np.tile(np.arange(SIDE), (SIDE, 1))
    images = {
        "black": np.zeros((SIDE, SIDE)),
        "white": np.full((SIDE, SIDE), 255),
        "two levels": columns % 2 * 255,
        "ramp": columns * 2,
        "noise": np.random.default_rng(1).integers(0, 256, (SIDE, SIDE)),
        "structure": smooth_image(),
    }
    return images[kind].astype(np.uint8)


BOXES = [
    (1, 1, 4, 4),
    (1, 1, SIDE - 1, SIDE - 1),
    (40, 50, 43, 53),
    (20, 30, 22, 90),
    (10, 20, 50, 60),
    (60, 1, 95, 17),
    (30, 92, 64, 95),
]


def assert_same(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    for name, value, reference in zip(FEATURE_NAMES, found, expected, strict=True):
        assert value == pytest.approx(reference, rel=RELATIVE_TOLERANCE, abs=0), name


def test_stored_names_are_those_of_pyradiomics_in_its_order() -> None:
    classes = radiomics.getFeatureClasses()
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 102
    for feature_class, names in NAMES_BY_CLASS.items():
        current = classes[feature_class].getFeatureNames()
        assert names == tuple(name for name, deprecated in current.items() if not deprecated)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("kind", ["black", "white", "two levels", "ramp", "noise", "structure"])
def test_values_are_those_of_execute(
    kind: str, box: tuple[int, int, int, int], executed: Reference
) -> None:
    image = synthetic_image(kind)
    row = features_of(image, Box(*box), CONFIG)
    assert row.status == FeatureStatus.OK
    assert_same(row.values, executed(image, *box))


@pytest.mark.parametrize(("bin_width", "spacing_mm"), [(3.5, 1.0), (25.0, 0.143), (128.0, 2.0)])
def test_values_are_those_of_execute_with_other_settings(
    bin_width: float, spacing_mm: float, executed: Reference
) -> None:
    image, box = smooth_image(), (10, 20, 50, 70)
    config = RadiomicsConfig(bin_width=bin_width, spacing_mm=spacing_mm)
    reference = executed(image, *box, bin_width=bin_width, spacing_mm=spacing_mm)
    assert_same(features_of(image, Box(*box), config).values, reference)


def test_values_are_those_of_execute_on_real_radiographs(
    shared_data: Path, executed: Reference
) -> None:
    rng = np.random.default_rng(0)
    paths = sorted((shared_data / "radiographs" / "images").iterdir())[::25]
    assert len(paths) >= 10
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        pixels = np.asarray(image, dtype=np.uint8)
        height, width = (int(side) for side in rng.integers(3, 120, 2))
        top = int(rng.integers(1, pixels.shape[0] - height - 1))
        left = int(rng.integers(1, pixels.shape[1] - width - 1))
        box = (top, left, top + height, left + width)
        row = features_of(pixels, Box(*box), CONFIG)
        assert row.status == FeatureStatus.OK
        assert_same(row.values, executed(pixels, *box))


@pytest.mark.parametrize(
    "box",
    [Box(-5, -5, 1, 1), Box(200, 200, 300, 300), Box(10, 10, 11, 50), Box(0, 0, 0.5, 0.5)],
)
def test_box_that_leaves_less_than_two_pixels_a_side_fails_without_values(box: Box) -> None:
    row = features_of(smooth_image(), box, CONFIG)
    assert row.status == FeatureStatus.FAILED
    assert np.isnan(row.values).all()


def test_box_is_rounded_outward_and_clipped_to_leave_the_border() -> None:
    image = smooth_image()
    assert np.shares_memory(crop_of(image, Box(3.2, 4.9, 8.1, 9.3)), image)
    np.testing.assert_array_equal(crop_of(image, Box(3.2, 4.9, 8.1, 9.3)), image[3:9, 4:10])
    whole = crop_of(image, Box(-3, 0, SIDE + 9, SIDE))
    np.testing.assert_array_equal(whole, image[1:-1, 1:-1])


def test_pixels_outside_the_box_do_not_matter() -> None:
    image, box = smooth_image(), Box(10, 20, 50, 60)
    other = np.zeros_like(image)
    other[10:50, 20:60] = image[10:50, 20:60]
    values = features_of(image, box, CONFIG).values
    np.testing.assert_array_equal(features_of(other, box, CONFIG).values, values)


def test_measuring_twice_gives_the_same_and_leaves_the_image_alone() -> None:
    image, box = smooth_image(), Box(10, 20, 50, 60)
    before = image.copy()
    values = features_of(image, box, CONFIG).values
    np.testing.assert_array_equal(features_of(image, box, CONFIG).values, values)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("error", [ValueError, np.linalg.LinAlgError, MemoryError, IndexError])
def test_refusal_of_the_feature_classes_is_a_status(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> dict[str, float]:
        raise error("no")

    monkeypatch.setattr(measured_module, "features_of_arrays", refuse)
    row = features_of(smooth_image(), Box(10, 20, 50, 60), CONFIG)
    assert row.status == FeatureStatus.FAILED
    assert np.isnan(row.values).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_feature_that_is_not_finite_is_a_status(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*arguments: object) -> dict[str, float]:
        return {**features_of_arrays(*arguments), "glcm_Contrast": bad}  # type: ignore[arg-type]

    monkeypatch.setattr(measured_module, "features_of_arrays", spoilt)
    row = features_of(smooth_image(), Box(10, 20, 50, 60), CONFIG)
    assert row.status == FeatureStatus.NOT_FINITE
    assert np.isnan(row.values).all()


def test_measuring_is_quiet_and_leaves_pyradiomics_log_settings_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    loggers = [logging.getLogger(name) for name in ("radiomics", "radiomics.glcm")]
    before = [(logger.level, logger.disabled) for logger in loggers]
    features_of(smooth_image(), Box(10, 20, 50, 60), CONFIG)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
    assert [(logger.level, logger.disabled) for logger in loggers] == before


IMAGES = np.stack([smooth_image(seed) for seed in range(3)])


def found(*sides: float) -> Region:
    return Region(status=RegionStatus.OK, box=Box(*sides))


def five_regions() -> tuple[pd.DataFrame, NDArray[np.int64]]:
    regions = [
        found(10, 10, 30, 30),
        Region(status=RegionStatus.NO_EVIDENCE),
        found(5, 6, 20, 50),
        found(10, 10, 30, 30),
        found(50, 50, 51, 51),
    ]
    image_ids = ["c", "a", "a", "a", "b"]
    table = regions_table(image_ids, ["Mass"] * 5, [0.0] * 5, regions)
    return table, np.array([2, 0, 0, 0, 1])


def _extracted(
    regions: pd.DataFrame,
    rows: NDArray[np.int64],
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    def images(wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        return IMAGES[wanted]

    parts = extract_features(images, regions, rows, CONFIG, num_workers, progress)
    return pd.concat(parts, ignore_index=True)


def test_parts_of_the_table_together_are_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    regions, rows = five_regions()
    whole, seen = _extracted(regions, rows), []
    monkeypatch.setattr("chexradinet.regions.radiomics.PART_SIZE", 2)
    parts = _extracted(regions, rows, progress=lambda *counts: seen.append(counts))
    pd.testing.assert_frame_equal(parts, whole)
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_table_of_features_follows_the_table_of_regions(num_workers: int) -> None:
    regions, rows = five_regions()
    features = _extracted(regions, rows, num_workers)
    assert tuple(features.columns) == FEATURE_COLUMNS
    assert features["image_id"].tolist() == regions["image_id"].tolist()
    assert features["status"].tolist() == ["ok", "no_region", "ok", "ok", "failed"]
    values = features[list(FEATURE_NAMES)].to_numpy()
    assert np.isnan(values[[1, 4]]).all()
    expected = features_of(IMAGES[0], Box(5, 6, 20, 50), CONFIG).values
    np.testing.assert_array_equal(values[2], expected)
    np.testing.assert_array_equal(
        values[0], features_of(IMAGES[2], Box(10, 10, 30, 30), CONFIG).values
    )


def test_only_images_with_a_region_are_read_each_once_a_batch() -> None:
    regions, rows = five_regions()
    asked: list[list[int]] = []

    def images(wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        asked.append(wanted.tolist())
        return IMAGES[wanted]

    for chosen in (slice(1, 4), slice(1, 2)):
        list(extract_features(images, regions.iloc[chosen], rows[chosen], CONFIG, 1))
    assert asked == [[0]]


def test_progress_counts_up_to_the_number_of_regions() -> None:
    regions, rows = five_regions()
    seen: list[tuple[int, int]] = []
    _extracted(regions, rows, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 5) for number in range(1, 6)]


def test_no_region_at_all_gives_an_empty_table() -> None:
    regions, rows = five_regions()
    features = _extracted(regions[:0], rows[:0])
    assert tuple(features.columns) == FEATURE_COLUMNS
    assert len(features) == 0


def test_rows_that_do_not_fit_the_regions_are_refused() -> None:
    regions, rows = five_regions()
    with pytest.raises(MismatchError, match="5 regions and 4 data set rows"):
        extract_features(lambda wanted: IMAGES[wanted], regions, rows[:4], CONFIG, 1)


def test_a_host_without_pyradiomics_says_so_in_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chexradinet.regions.radiomics.find_spec", lambda _name: None)
    row = features_of(smooth_image(), Box(10, 20, 50, 60), CONFIG)
    assert row.status == FeatureStatus.NOT_INSTALLED
    regions, rows = five_regions()
    table = _extracted(regions, rows)
    assert set(table["status"]) == {"not_installed", "no_region"}


NUM_FEATURES = len(FEATURE_NAMES)


def features(num_rows: int, seed: int = 0) -> NDArray[np.float64]:
    """Return columns of very different magnitude, as radiomics has them."""
    rng = np.random.default_rng(seed)
    magnitudes = np.logspace(-3, 8, NUM_FEATURES) * (-1) ** np.arange(NUM_FEATURES)
    return np.exp(rng.normal(size=(num_rows, NUM_FEATURES))) * magnitudes


def test_feature_that_does_not_vary_becomes_zero_not_nan() -> None:
    values = features(20)
    values[:, 3] = 7.0
    normalised = fit_normalisation(values).apply(values)
    assert (normalised[:, 3] == 0).all()


def test_rounding_of_a_constant_feature_is_not_blown_up() -> None:
    values = features(20)
    values[:, 3] = 1.0 + np.random.default_rng(0).normal(size=20) * 1e-15
    assert np.abs(fit_normalisation(values).apply(values)[:, 3]).max() < 1e-6


def test_single_row_is_normalised_to_zero() -> None:
    values = features(1)
    assert (fit_normalisation(values).apply(values) == 0).all()


def test_no_row_is_refused() -> None:
    with pytest.raises(TrainingError, match="no region of the training split"):
        fit_normalisation(np.zeros((0, NUM_FEATURES)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_without_values_are_refused_when_fitting_and_when_applying(bad: float) -> None:
    values = features(4)
    normalisation = fit_normalisation(values)
    values[2, 5] = bad
    with pytest.raises(TrainingError, match="1 of 4 feature rows"):
        fit_normalisation(values)
    with pytest.raises(TrainingError, match="status is not ok"):
        normalisation.apply(values)


def test_other_number_of_features_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\(3, 107\)"):
        fit_normalisation(np.zeros((3, 107)))


def test_known_column_has_its_known_values() -> None:
    logs = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    values = np.tile((np.sign(logs) * np.expm1(np.abs(logs)))[:, None], (1, NUM_FEATURES))
    expected = logs / (2.0 / 1.349)  # quartiles of the logarithms are -1 and 1
    np.testing.assert_allclose(
        fit_normalisation(values).apply(values)[:, 0], expected.astype(np.float32), rtol=1e-6
    )


def test_outliers_are_clipped_and_do_not_move_the_statistics() -> None:
    values = features(1001)
    plain = fit_normalisation(values)
    values[0] = 1e30
    normalised = fit_normalisation(values).apply(values)
    assert (normalised[0] == 5).all()
    np.testing.assert_allclose(fit_normalisation(values).spread, plain.spread, rtol=0.1)


def test_statistics_come_from_the_fitted_rows_only() -> None:
    train, test = features(50, seed=1), features(50, seed=2) * 1e3
    normalisation = fit_normalisation(train)
    before = normalisation.median.copy(), normalisation.spread.copy()
    normalisation.apply(test)
    np.testing.assert_array_equal((normalisation.median, normalisation.spread), before)
    assert np.abs(np.median(normalisation.apply(train), axis=0)).max() < 0.1


def test_result_is_float32_of_the_same_shape() -> None:
    normalised = fit_normalisation(features(9)).apply(features(4))
    assert normalised.dtype == np.float32
    assert normalised.shape == (4, NUM_FEATURES)
