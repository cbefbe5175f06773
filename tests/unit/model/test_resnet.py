"""The classifier: shapes, maps equal to Grad-CAM, weights of torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import save_file
from torch import Tensor, nn

from chexradinet.config import Backbone, NetworkConfig
from chexradinet.errors import ArtifactError, ConfigError, MismatchError
from chexradinet.model.resnet import ChexRadiNet, build_network, load_imagenet_weights, normalise


def _images(side: int = 64, number: int = 2) -> Tensor:
    return torch.randn(number, 1, side, side, generator=torch.Generator().manual_seed(0))


def _scaled(maps: Tensor) -> Tensor:
    """Rectify and divide by each map's maximum."""
    positive = maps.relu()
    return positive / positive.amax((-2, -1), keepdim=True).clamp(min=1e-12)


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [("resnet18", 8), ("resnet34", 16), ("resnet50", 16), ("resnet18-narrow", 8)],
)
def test_attention_costs_300_parameters_a_block(backbone: str, blocks: int) -> None:
    network = build_network(NetworkConfig(backbone=Backbone(backbone)), 3)
    named = dict(network.named_parameters())
    assert sum(p.numel() for name, p in named.items() if ".attention." in name) == 300 * blocks


@pytest.mark.parametrize("map_stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", ["resnet18-narrow", "resnet50"])
def test_a_cell_of_the_map_covers_map_stride_pixels(backbone: str, map_stride: int) -> None:
    config = NetworkConfig(backbone=Backbone(backbone), map_stride=map_stride)
    network = build_network(config, 4, seed=0).eval()
    with torch.inference_mode():
        found = network(_images(96))
    assert found.logits.shape == (2, 4)
    assert found.maps.shape == (2, 4, 96 // map_stride, 96 // map_stride)
    assert found.embedding.shape == (2, network.num_channels)


def test_logit_is_the_mean_of_the_map_plus_the_bias(network: ChexRadiNet) -> None:
    found = network(_images())
    torch.testing.assert_close(found.logits, found.maps.mean((2, 3)) + network.fc.bias)
    torch.testing.assert_close(found.logits, network.fc(found.embedding))


def test_maps_equal_grad_cam_by_autograd(network: ChexRadiNet) -> None:
    features = network.features(_images()).detach().requires_grad_()
    for finding in range(network.num_findings):
        logits = network.fc(features.mean((2, 3)))
        (gradients,) = torch.autograd.grad(logits[:, finding].sum(), features)
        weights = gradients.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        expected = _scaled((weights * features).sum(1))
        given = _scaled(network(_images()).maps[:, finding])
        assert expected.max() > 0
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


class _Logits(nn.Module):
    def __init__(self, network: ChexRadiNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def test_maps_equal_those_of_the_grad_cam_package(network: ChexRadiNet) -> None:
    images = _images()
    with GradCAM(_Logits(network), [network.layer4], reshape_transform=None) as package:
        for finding in range(network.num_findings):
            package(images, [ClassifierOutputTarget(finding)] * len(images))
            activations = package.activations_and_grads.activations[0]
            gradients = package.activations_and_grads.gradients[0]
            raw = package.get_cam_image(
                images, package.target_layers[0], [], activations.numpy(), gradients.numpy()
            )
            given = _scaled(network(images).maps[:, finding]).detach()
            expected = _scaled(torch.from_numpy(np.asarray(raw)))
            torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    config = NetworkConfig(backbone=Backbone.RESNET18_NARROW)
    torch.manual_seed(5)
    first = build_network(config, 2, seed=4)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first.conv1.weight, build_network(config, 2, seed=4).conv1.weight)
    assert not torch.equal(first.conv1.weight, build_network(config, 2, seed=6).conv1.weight)


def test_network_without_findings_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_findings is 0"):
        build_network(NetworkConfig(), 0)


def test_black_is_minus_two_and_white_is_two() -> None:
    images = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    assert normalise(images).tolist() == [[[[-2.0, 2.0]]]]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_are_taken_and_attention_is_kept(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        # Torchvision's older files lack this counter.
        kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(kept, path)
    else:
        save_file(state, path)
    network = build_network(NetworkConfig(backbone=Backbone.RESNET18), 3, seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_imagenet_weights(network, path)
    after = network.state_dict()
    assert torch.equal(after["layer3.1.conv2.weight"], state["layer3.1.conv2.weight"])
    torch.testing.assert_close(after["conv1.weight"][:, 0], state["conv1.weight"].sum(1))
    for name in before:
        if ".attention." in name or name.startswith("fc."):
            assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("backbone", ["resnet18-narrow", "resnet34", "resnet50"])
def test_weights_of_another_depth_or_width_are_refused(tmp_path: Path, backbone: str) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pth")
    network = build_network(NetworkConfig(backbone=Backbone(backbone)), 3)
    with pytest.raises(MismatchError, match=rf"does not fit {backbone}.*the first is \w+"):
        load_imagenet_weights(network, tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["absent.pth", "broken.pth", "broken.safetensors", "list.pth"])
def test_file_without_weights_is_refused(tmp_path: Path, name: str, network: ChexRadiNet) -> None:
    for broken in ("broken.pth", "broken.safetensors"):
        (tmp_path / broken).write_bytes(b"no weights at all")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match=name):
        load_imagenet_weights(network, tmp_path / name)
