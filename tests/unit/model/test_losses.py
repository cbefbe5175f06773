"""The loss terms: known values, degenerate batches, and a gradient that reaches the network."""

import math

import pytest
import torch
from torch import Tensor

from chexradinet.config import GuidanceConfig, GuidanceRecipe
from chexradinet.model.losses import (
    Pairs,
    build_heads,
    guided_loss,
    map_entropy,
    masked_bce,
    nt_xent,
)
from chexradinet.model.resnet import ChexRadiNet

NAN = float("nan")


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def test_nothing_known_is_zero_with_a_gradient_of_zero() -> None:
    logits = torch.ones(2, 3, requires_grad=True)
    loss = masked_bce(logits, torch.full((2, 3), NAN))
    _backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_unknown_labels_neither_count_nor_send_gradients() -> None:
    logits = torch.tensor([[0.0, 3.0], [2.0, -1.0]], requires_grad=True)
    loss = masked_bce(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]]))
    _backward(loss)
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-1))) / 2)
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [False, True]]


def test_one_class_labels_give_a_finite_loss() -> None:
    assert masked_bce(torch.zeros(4, 1), torch.ones(4, 1)).item() == pytest.approx(math.log(2))


def test_entropy_is_one_for_a_flat_map_and_zero_for_a_single_cell() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 1, 2, 3] = 1000
    assert map_entropy(maps, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1)
    assert map_entropy(maps, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(0)
    assert map_entropy(maps, torch.tensor([[1.0, 1.0]])).item() == pytest.approx(0.5)


def test_entropy_without_positives_is_zero_with_a_graph() -> None:
    maps = torch.randn(2, 2, 3, 3, requires_grad=True)
    loss = map_entropy(maps, torch.tensor([[0.0, NAN], [0.0, 0.0]]))
    _backward(loss)
    assert loss.item() == 0
    assert maps.grad is not None
    assert not maps.grad.any()


def test_entropy_of_a_map_of_one_cell_is_zero() -> None:
    assert map_entropy(torch.ones(1, 1, 1, 1), torch.ones(1, 1)).item() == 0


@pytest.mark.parametrize("num_pairs", [0, 1])
def test_contrast_of_no_or_one_pair_is_zero_with_a_graph(num_pairs: int) -> None:
    images = torch.randn(num_pairs, 4, requires_grad=True)
    loss = nt_xent(images, torch.randn(num_pairs, 4), 0.2)
    _backward(loss)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert images.grad is not None


def test_contrast_has_its_known_value() -> None:
    # Each view: positive at cosine 1, two negatives at cosine 0.
    views = torch.eye(2)
    expected = math.log(math.exp(1 / 0.5) + 2) - 1 / 0.5
    assert nt_xent(views, 3 * views, 0.5).item() == pytest.approx(expected)


def test_contrast_grows_when_features_meet_another_image() -> None:
    views = torch.eye(4)
    assert nt_xent(views, views.roll(1, 0), 0.2) > nt_xent(views, views, 0.2) + 1


def test_regions_of_one_image_are_no_negatives_of_each_other() -> None:
    image = torch.randn(1, 8).expand(3, 8)
    features = torch.randn(3, 8)
    assert nt_xent(image, features, 0.2, torch.zeros(3)).item() == pytest.approx(0, abs=1e-6)
    assert nt_xent(image, features, 0.2).item() > 1


def test_owners_that_all_differ_change_nothing() -> None:
    first, second = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        nt_xent(first, second, 0.2, torch.arange(5)), nt_xent(first, second, 0.2)
    )


@pytest.mark.parametrize("recipe", list(GuidanceRecipe))
def test_mixture_weighs_the_terms_of_its_recipe(
    recipe: GuidanceRecipe, network: ChexRadiNet
) -> None:
    config = GuidanceConfig(guidance=recipe, sharpen_weight=0.2, contrastive_weight=0.1)
    prediction = network(torch.randn(2, 1, 64, 64))
    labels = torch.tensor([[1.0, 0.0, NAN], [0.0, 1.0, 1.0]])
    pairs = Pairs(torch.randn(2, 8), torch.randn(2, 8), torch.arange(2))
    total, parts = guided_loss(prediction, labels, config, pairs)
    sharpen = 0.2 if config.sharpens else 0.0
    contrast = 0.1 if config.contrasts else 0.0
    expected = (1 - sharpen - contrast) * masked_bce(prediction.logits, labels)
    expected = expected + sharpen * map_entropy(prediction.maps, labels)
    expected = expected + contrast * nt_xent(*pairs[:2], config.temperature)
    torch.testing.assert_close(total, expected)
    named = {"classification", *(["entropy"] * config.sharpens)}
    assert set(parts) == named | {*(["contrastive"] * config.contrasts)}


@pytest.mark.parametrize("term", ["classification", "entropy", "contrastive"])
def test_each_term_alone_decreases_and_reaches_the_first_layer(
    term: str, network: ChexRadiNet
) -> None:
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(24).reshape(8, 3) % 2).float()
    features = torch.randn(8, 102, generator=torch.Generator().manual_seed(1))
    heads = build_heads(network.num_channels, seed=0)

    def loss() -> Tensor:
        found = network(images)
        if term == "classification":
            return masked_bce(found.logits, labels)
        if term == "entropy":
            return map_entropy(found.maps, labels)
        return nt_xent(heads.image(found.embedding), heads.radiomics(features), 0.2)

    network.train()
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    first = loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        _backward(loss())
        gradient = network.conv1.weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        optimizer.step()
    assert loss().item() < 0.9 * first
