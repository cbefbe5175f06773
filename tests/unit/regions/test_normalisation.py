"""Normalisation of the features: degenerate columns, known answers, the bundle's record."""

import numpy as np
import pytest
from numpy.typing import NDArray

from chexradinet.errors import MismatchError, TrainingError
from chexradinet.regions import FEATURE_NAMES
from chexradinet.regions.radiomics import fit_normalisation

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
