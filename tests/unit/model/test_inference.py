"""Prediction: independent of the batch, complete, and defined for nothing."""

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from chexradinet.config import Backbone, NetworkConfig, Precision
from chexradinet.model.inference import folded, predict, resolved
from chexradinet.model.resnet import ChexRadiNet, build_network

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
    np.testing.assert_array_equal(parts.rows, rows)
    np.testing.assert_allclose(parts.logits, whole.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts.embedding, whole.embedding, rtol=0, atol=1e-5)
    np.testing.assert_allclose(parts.maps, whole.maps, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(whole.logits[2], whole.logits[3])


def test_maps_are_left_out_where_not_wanted(network: ChexRadiNet) -> None:
    found = predict(network, _fetch, np.arange(2), device="cpu", maps=False)
    assert found.maps.shape[2:] == (0, 0)


@pytest.mark.parametrize("backbone", ["resnet18-narrow", "resnet50"])
def test_folded_network_computes_the_same(backbone: str) -> None:
    network = build_network(NetworkConfig(backbone=Backbone(backbone)), 3, seed=0)
    images = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    network.train()(images)  # gives the batch norms statistics of their own
    network.eval()
    with torch.inference_mode():
        expected, given = network(images), folded(network)(images)
    torch.testing.assert_close(given.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.maps, expected.maps, rtol=1e-4, atol=1e-4)
    norms = [m for m in folded(network).layer1[0].children() if isinstance(m, nn.BatchNorm2d)]
    assert norms == []


def test_float16_is_close_to_float32_and_nothing_that_a_cpu_chooses(network: ChexRadiNet) -> None:
    exact, chosen, rough = (
        predict(network, _fetch, np.arange(7), device="cpu", precision=precision)
        for precision in (Precision.FLOAT32, Precision.AUTO, Precision.FLOAT16)
    )
    np.testing.assert_array_equal(chosen.logits, exact.logits)
    assert {part.dtype for part in rough[1:]} == {np.dtype(np.float32)}
    assert 0 < np.abs(rough.logits - exact.logits).max() < 0.002
    np.testing.assert_allclose(rough.maps, exact.maps, rtol=0, atol=0.01)


def test_a_batch_that_exceeds_float16_is_computed_in_float32(network: ChexRadiNet) -> None:
    with torch.no_grad():
        network.bn1.weight.mul_(1e7)
    exact, rough = (
        predict(network, _fetch, np.arange(7), device="cpu", precision=precision)
        for precision in (Precision.FLOAT32, Precision.FLOAT16)
    )
    assert np.isfinite(exact.maps).all()
    np.testing.assert_array_equal(rough.logits, exact.logits)
    np.testing.assert_array_equal(rough.maps, exact.maps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no accelerator")
def test_an_accelerator_chooses_float16_which_is_close_to_float32(network: ChexRadiNet) -> None:
    assert resolved(Precision.AUTO, torch.device("cuda")) is Precision.FLOAT16
    exact = predict(network, _fetch, np.arange(7), device="cpu")
    rough = predict(network, _fetch, np.arange(7), device="cuda", precision=Precision.AUTO)
    np.testing.assert_allclose(rough.logits, exact.logits, rtol=0, atol=0.005)


def test_prediction_leaves_the_network_as_it_is(network: ChexRadiNet) -> None:
    before = copy.deepcopy(network.state_dict())
    expected = predict(network, _fetch, np.arange(3), device="cpu").logits
    again = predict(network.train(), _fetch, np.arange(3), device="cpu").logits
    np.testing.assert_array_equal(again, expected)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
