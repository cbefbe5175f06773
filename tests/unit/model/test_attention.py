"""Triplet attention: equal to the formulation of the publication, gradients included."""

import pytest
import torch
from torch import Tensor, nn

from chexradinet.model.attention import Gate, TripletAttention


def _textbook_branch(gate: Gate, features: Tensor, order: tuple[int, int, int, int]) -> Tensor:
    """Permute, pool the second axis, convolve, normalise, squash, multiply, permute back."""
    turned = features.permute(order).contiguous()
    pooled = torch.cat((turned.max(1, keepdim=True).values, turned.mean(1, keepdim=True)), 1)
    return (turned * torch.sigmoid(gate.bn(gate.conv(pooled)))).permute(order).contiguous()


def _textbook(attention: TripletAttention, features: Tensor) -> Tensor:
    """Figure 3 of arXiv:2010.03045: three branches, each on a rotated copy, averaged."""
    return (
        _textbook_branch(attention.over_height, features, (0, 2, 1, 3))
        + _textbook_branch(attention.over_width, features, (0, 3, 2, 1))
        + _textbook_branch(attention.over_channels, features, (0, 1, 2, 3))
    ) / 3


def _trained_attention() -> TripletAttention:
    """Attention whose batch norms have statistics and factors that are not the initial ones."""
    torch.manual_seed(3)
    attention = TripletAttention()
    for module in attention.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return attention


SHAPES = [(2, 5, 7, 9), (1, 16, 12, 12), (3, 1, 4, 1), (2, 24, 1, 6), (1, 256, 14, 14)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_equal_the_textbook_formulation(
    shape: tuple[int, ...], layout: torch.memory_format, training: bool
) -> None:
    attention = _trained_attention().double().train(training)
    results = []
    for formulation in (attention.forward, lambda x: _textbook(attention, x)):
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
        features = features.contiguous(memory_format=layout).requires_grad_()
        attention.zero_grad()
        out = formulation(features)
        (out * torch.linspace(-1, 1, out.numel()).double().reshape(out.shape)).sum().backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        weights = [p.grad.clone() for p in attention.parameters() if p.grad is not None]
        results.append([out.detach(), features.grad, *weights])
    assert len(results[0]) == 2 + 9
    for lean, textbook in zip(*results, strict=True):
        torch.testing.assert_close(lean, textbook, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 256, 56, 56), (40, 128, 8, 8)])
def test_end_of_a_block_equals_the_textbook_with_and_without_gradients(
    shape: tuple[int, ...],
) -> None:
    attention = _trained_attention().eval()
    generator = torch.Generator().manual_seed(0)
    features, skipped = (
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    expected = (_textbook(attention, features) + skipped).relu()
    before = skipped.clone()
    torch.testing.assert_close(attention.add_to(skipped, features), expected, rtol=1e-6, atol=1e-6)
    with torch.inference_mode():
        given = attention.add_to(skipped, features)
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(skipped, before)


def test_attention_has_300_parameters() -> None:
    assert sum(parameter.numel() for parameter in TripletAttention().parameters()) == 300


def test_one_image_does_not_depend_on_its_batch() -> None:
    attention = _trained_attention().eval()
    features = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(features)[2:3], attention(features[2:3]))
