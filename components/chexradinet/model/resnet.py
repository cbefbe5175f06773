"""The classifier: torchvision's residual network, triplet attention, and maps beside the logits.

The head is linear on the mean of the last feature map, so the class activation map (Zhou et al.
2016, arXiv:1512.04150) is one matrix product, its mean plus the bias is the logit, and Grad-CAM
(Selvaraju et al. 2017, arXiv:1610.02391) equals it up to a positive factor: one forward pass gives
the maps of all findings.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from chexradinet.config import Backbone, Freeze, NetworkConfig, require
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.model.attention import TripletAttention

_TORCHVISION_WIDTHS = (64, 128, 256, 512)
_NARROW_WIDTHS = (16, 32, 48, 64)
_STAGE_OUTPUT_STRIDES = (4, 8, 16, 32)


class Prediction(NamedTuple):
    """What one forward pass says about a batch."""

    logits: Tensor
    """Before the sigmoid, shape (B, F): mean of the map plus the finding's bias."""
    maps: Tensor
    """Class activation maps, shape (B, F, h, w), h = H / map stride; positive speaks for it."""
    embedding: Tensor
    """Mean of the last feature map, shape (B, C)."""


class AttentiveBasicBlock(BasicBlock):  # type: ignore[misc]
    """Two 3x3 convolutions, attention, skip connection."""

    attention: TripletAttention

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', H', W') for (B, C, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        skipped = x if self.downsample is None else self.downsample(x)
        return self.attention.add_to(skipped, out)


class AttentiveBottleneck(Bottleneck):  # type: ignore[misc]
    """1x1, 3x3 and 1x1 convolution, attention, skip connection."""

    attention: TripletAttention

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', H', W') for (B, C, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        skipped = x if self.downsample is None else self.downsample(x)
        return self.attention.add_to(skipped, out)


_SHAPES: dict[Backbone, tuple[type[BasicBlock | Bottleneck], Sequence[int], tuple[int, ...]]] = {
    Backbone.RESNET18: (AttentiveBasicBlock, (2, 2, 2, 2), _TORCHVISION_WIDTHS),
    Backbone.RESNET34: (AttentiveBasicBlock, (3, 4, 6, 3), _TORCHVISION_WIDTHS),
    Backbone.RESNET50: (AttentiveBottleneck, (3, 4, 6, 3), _TORCHVISION_WIDTHS),
    Backbone.RESNET18_NARROW: (AttentiveBasicBlock, (2, 2, 2, 2), _NARROW_WIDTHS),
}


class ChexRadiNet(ResNet):  # type: ignore[misc]
    """Residual network with triplet attention for one-channel radiographs.

    Names of parameters are torchvision's, plus `layerX.Y.attention.*`; made by `build_network`.
    """

    def __init__(self, config: NetworkConfig, num_findings: int) -> None:
        block, depths, widths = _SHAPES[config.backbone]
        self.config = config
        self.num_findings = num_findings
        self._widths = widths
        self._frozen: list[nn.Module] = []
        super().__init__(block, list(depths), num_classes=num_findings)
        self.num_channels = widths[-1] * block.expansion
        self.conv1 = nn.Conv2d(1, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.fc = nn.Linear(self.num_channels, num_findings)
        self.to(memory_format=torch.channels_last)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        """Build a stage of this network's width; a stride that would make maps too coarse is 1."""
        stage = _TORCHVISION_WIDTHS.index(planes)
        if stage == 0:
            self.inplanes = self._widths[0]
        keeps_stride = _STAGE_OUTPUT_STRIDES[stage] <= self.config.map_stride
        blocks_of_stage: nn.Sequential = super()._make_layer(
            block, self._widths[stage], blocks, stride if keeps_stride else 1, dilate
        )
        for member in blocks_of_stage:
            member.attention = TripletAttention()
        return blocks_of_stage

    def freeze(self, depth: Freeze) -> None:
        """Keep the weights and batch statistics of a part and all before it, also in training."""
        frozen = list(Freeze).index(depth)
        parts = ((self.conv1, self.bn1), (self.layer1,), (self.layer2,))
        self._frozen = [module for part in parts[:frozen] for module in part]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but for what is frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the last feature map, shape (B, C, h, w), of normalised images (B, 1, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        out = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        found: Tensor = out
        return found

    def forward(self, images: Tensor) -> Prediction:
        """Classify and locate.

        Args:
            images: From `normalise`, shape (B, 1, H, W).
        """
        features = self.features(images)
        # In float32 also under autocast: half precision has too few digits to rank by.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            by_cell = features.permute(0, 2, 3, 1) @ self.fc.weight.T  # (B, h, w, F)
            maps = by_cell.permute(0, 3, 1, 2)
            return Prediction(
                logits=maps.mean((2, 3)) + self.fc.bias, maps=maps, embedding=features.mean((2, 3))
            )

    if TYPE_CHECKING:
        __call__ = forward


def build_network(config: NetworkConfig, num_findings: int, seed: int | None = None) -> ChexRadiNet:
    """Make a classifier with random weights, in training mode, on the CPU.

    Args:
        config: Depth, width and map stride.
        num_findings: Columns of the logits, at least 1.
        seed: Equal seeds give equal weights; None draws from torch's global generator.

    Raises:
        ConfigError: there are no findings to learn.
    """
    require(num_findings >= 1, "num_findings", num_findings, "at least 1")
    if seed is None:
        return ChexRadiNet(config, num_findings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ChexRadiNet(config, num_findings)


def normalise(images: Tensor) -> Tensor:
    """Return network input, float32 (B, 1, H, W), of uint8 images (B, H, W), on their device."""
    return images.unsqueeze(1).float().div_(255).sub_(0.5).div_(0.25)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def load_imagenet_weights(network: ChexRadiNet, path: Path) -> None:
    """Start from torchvision's weights: the stem summed over red, green and blue, no head.

    Attention and head keep their values. A grey image fed to all three channels gave the same
    response as the sum gives here.

    Args:
        network: A network of the depth in the file; changed in place.
        path: State dict of a torchvision ResNet, `.pth` or `.safetensors`.

    Raises:
        ArtifactError: the file is missing or holds no state dict.
        MismatchError: the file is of another depth or width; it names the first difference.
    """
    given = _read_state(path)
    if "conv1.weight" in given:
        given["conv1.weight"] = given["conv1.weight"].sum(1, keepdim=True)
    own = network.state_dict()
    needed = {name for name in own if _is_shared(name) and ".attention." not in name}
    found = {name for name in given if _is_shared(name)}
    differing = sorted(needed ^ found) or sorted(
        name for name in needed if own[name].shape != given[name].shape
    )
    if differing:
        raise MismatchError(
            f"{path} does not fit {network.config.backbone.value}: {len(differing)} tensors are "
            f"missing, unknown or of another shape, the first is {differing[0]}; give the file of "
            "the same depth, or choose the backbone it was made for"
        )
    network.load_state_dict({name: given[name] for name in needed}, strict=False)


def _is_shared(name: str) -> bool:
    # Torchvision's older files have no `num_batches_tracked`, and nothing here reads it.
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def _read_state(path: Path) -> dict[str, Tensor]:
    advice = "give a torchvision ResNet state dict as .pth or .safetensors"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; {advice}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as weights ({error}); {advice}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(f"{path} holds no state dict; {advice}")
    return dict(state)
