"""Prediction: independent of the batch, complete, and defined for nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from chexradinet.model.inference import predict, predict_batches
from chexradinet.model.resnet import ChexRadiNet

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 64, 64)).astype(np.uint8)


def _fetch(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    chosen: NDArray[np.uint8] = IMAGES[rows]
    return chosen


def test_no_rows_give_empty_predictions(network: ChexRadiNet) -> None:
    found = predict(network, _fetch, np.arange(0), device="cpu")
    assert found.logits.shape == (0, 3)
    assert found.embedding.shape == (0, 64)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_do_not_depend_on_the_batch_size(network: ChexRadiNet, batch_size: int) -> None:
    rows = np.array([6, 0, 3, 3, 1, 5, 2])
    whole = predict(network, _fetch, rows, batch_size=7, device="cpu")
    parts = predict(network, _fetch, rows, batch_size=batch_size, device="cpu")
    assert whole.maps is not None
    assert parts.maps is not None
    np.testing.assert_array_equal(parts.rows, rows)
    np.testing.assert_allclose(parts.logits, whole.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts.embedding, whole.embedding, rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts.maps, whole.maps, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(whole.logits[2], whole.logits[3])


def test_maps_are_left_out_where_not_wanted(network: ChexRadiNet) -> None:
    (found,) = predict_batches(network, _fetch, np.arange(2), device="cpu", maps=False)
    assert found.maps is None


def test_prediction_sets_evaluation_mode(network: ChexRadiNet) -> None:
    expected = predict(network, _fetch, np.arange(3), device="cpu").logits
    again = predict(network.train(), _fetch, np.arange(3), device="cpu").logits
    np.testing.assert_array_equal(again, expected)
