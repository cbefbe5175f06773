"""Shape of the network, how a round is trained, and what guides it."""

from dataclasses import dataclass
from enum import StrEnum

from chexradinet.config.checks import choice, require

MAX_ROUNDS_LIMIT = 8
"""Most rounds a pipeline can be compiled for: each adds a sub-pipeline and an input."""


class Backbone(StrEnum):
    """Residual networks that the classifier can be built on."""

    RESNET18 = "resnet18"
    RESNET34 = "resnet34"
    RESNET50 = "resnet50"
    RESNET18_NARROW = "resnet18-narrow"
    """ResNet-18's depth with stages of 16, 32, 48 and 64 channels: for laptops and tests."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the classifier."""

    backbone: Backbone = Backbone.RESNET50
    """Depth and width."""
    map_stride: int = 16
    """Input pixels a cell of the heatmap covers, along each axis: 8, 16 or 32."""

    def __post_init__(self) -> None:
        """Check the stride and accept the backbone by name."""
        require(self.map_stride in (8, 16, 32), "map_stride", self.map_stride, "8, 16 or 32")
        object.__setattr__(self, "backbone", choice(Backbone, "backbone", self.backbone))


class GuidanceRecipe(StrEnum):
    """What a guided round adds to the classification loss."""

    NONE = "none"
    """Nothing: the control arm."""
    CONTRASTIVE = "contrastive"
    """NT-Xent between the image and the radiomics embedding of the same X-ray."""
    SHARPEN = "sharpen"
    """Entropy of the labelled findings' maps."""
    SHARPEN_CONTRASTIVE = "sharpen+contrastive"
    """Both."""


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Loss of a guided round: `(1 - s - c) * classification + s * entropy + c * contrastive`."""

    recipe: GuidanceRecipe = GuidanceRecipe.SHARPEN_CONTRASTIVE
    """Which terms take part; the weight of a term that does not is 0."""
    permute_radiomics: bool = False
    """Shuffle the features over the images: what it keeps of a gain is not radiomics."""
    sharpen_weight: float = 0.10
    """`s` above, in [0, 0.5]. At 0.3 the maps collapse in the second round."""
    contrastive_weight: float = 0.05
    """`c` above, in [0, 0.5]. At 0.3 it costs accuracy: NT-Xent is ten times the other term."""
    temperature: float = 0.2
    """Of NT-Xent, above 0."""

    def __post_init__(self) -> None:
        """Check the weights and accept the recipe by name."""
        for name in ("sharpen_weight", "contrastive_weight"):
            require(0 <= getattr(self, name) <= 0.5, name, getattr(self, name), "in [0, 0.5]")
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        object.__setattr__(self, "recipe", choice(GuidanceRecipe, "recipe", self.recipe))

    @property
    def sharpens(self) -> bool:
        """Whether the entropy term takes part."""
        return "sharpen" in self.recipe.value

    @property
    def contrasts(self) -> bool:
        """Whether the contrastive term takes part."""
        return "contrastive" in self.recipe.value

    @property
    def arm(self) -> str:
        """Name of the recipe as reports print it; `@permuted` where features are shuffled."""
        return self.recipe.value + ("@permuted" if self.permute_radiomics else "")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a round is trained."""

    epochs: int = 10
    """Passes over the training split."""
    batch_size: int = 16
    """Images a step."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    max_shift_fraction: float = 1 / 16
    """Augmentation: largest shift along each axis, as a fraction of the image's side."""
    max_contrast_change: float = 0.15
    """Augmentation: contrast is scaled by a factor in 1 +- this."""
    max_brightness_change: float = 0.25
    """Augmentation: largest brightness offset, in standard deviations of the input."""
    seed: int = 0
    """Of initial weights, order and augmentation; equal seeds see equal images in equal order."""
    num_threads: int = 0
    """Torch threads on a CPU; 0 leaves torch's own choice."""
    mixed_precision: bool = True
    """bfloat16 where an accelerator supports it; a CPU always computes in float32."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        require(0 < self.learning_rate < 1, "learning_rate", self.learning_rate, "in (0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        shift = self.max_shift_fraction
        require(0 <= shift < 0.5, "max_shift_fraction", shift, "in [0, 0.5)")
        require(self.num_threads >= 0, "num_threads", self.num_threads, "at least 0")
