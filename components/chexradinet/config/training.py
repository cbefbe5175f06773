"""How a model is made: network, training, guidance, regions, evaluation, publication; studies."""

import json
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from chexradinet.config.base import Settings, internal, require, stored_as

MAX_ROUNDS_LIMIT = 8
"""Most rounds a pipeline can be compiled for: each adds a sub-pipeline and an input."""


class Backbone(StrEnum):
    """Residual networks that the classifier can be built on."""

    RESNET18 = "resnet18"
    RESNET34 = "resnet34"
    RESNET50 = "resnet50"
    RESNET18_NARROW = "resnet18-narrow"
    """ResNet-18's depth with stages of 16, 32, 48 and 64 channels: for laptops and tests."""


class Precision(StrEnum):
    """Arithmetic of a forward pass; logits and maps are float32 whatever it is."""

    AUTO = "auto"
    """float16 on an accelerator, else float32."""
    FLOAT32 = "float32"
    FLOAT16 = "float16"


class NetworkConfig(Settings):
    """Shape of the classifier."""

    backbone: Backbone = Backbone.RESNET50
    """Depth and width of the network."""
    map_stride: int = Field(default=16, json_schema_extra={"needed": "8, 16 or 32"})
    """Input pixels that a cell of the heatmap covers; finer locates better."""

    @model_validator(mode="after")
    def _stride_is_possible(self) -> Self:
        require(self.map_stride in (8, 16, 32), "map_stride", self.map_stride, "8, 16 or 32")
        return self


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


class GuidanceConfig(Settings):
    """Loss of a guided round: `(1 - s - c) * classification + s * entropy + c * contrastive`."""

    guidance: GuidanceRecipe = stored_as("recipe", GuidanceRecipe.SHARPEN)
    """Terms that take part in the loss; the weight of a term that does not is 0."""
    permute_radiomics: bool = internal(False)
    """Shuffle the features over the images: what it keeps of a gain is not radiomics."""
    sharpen_weight: float = Field(default=0.10, ge=0, le=0.5)
    """Weight `s` of the maps' entropy. At 0.3 the maps collapse in the second round."""
    contrastive_weight: float = Field(default=0.05, ge=0, le=0.5)
    """Weight `c` of the contrast. At 0.3 it costs accuracy: NT-Xent is ten times the other term."""
    temperature: float = internal(0.2, gt=0)
    """Temperature of NT-Xent."""

    @property
    def sharpens(self) -> bool:
        """Whether the entropy term takes part."""
        return "sharpen" in self.guidance.value

    @property
    def contrasts(self) -> bool:
        """Whether the contrastive term takes part."""
        return "contrastive" in self.guidance.value

    @property
    def arm(self) -> str:
        """Name of the recipe as reports print it; `@permuted` if features are shuffled."""
        return self.guidance.value + ("@permuted" if self.permute_radiomics else "")


class OptimizationConfig(Settings):
    """What round 0 and the guided rounds share."""

    batch_size: int = Field(default=16, ge=2)
    """Images per training step."""
    weight_decay: float = internal(1e-4, ge=0)
    """Weight decay of AdamW."""
    max_shift_fraction: float = internal(1 / 16, ge=0, lt=0.5)
    """Augmentation: largest shift along each axis, as a fraction of the image's side."""
    max_contrast_change: float = internal(0.15)
    """Augmentation: contrast is scaled by a factor in 1 +- this."""
    max_brightness_change: float = internal(0.25)
    """Augmentation: largest brightness offset, in standard deviations of the input."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, augmentation and bootstrap."""
    num_threads: int = internal(0, ge=0)
    """Torch threads on a CPU; 0 leaves torch's own choice."""
    mixed_precision: bool = internal(True)
    """bfloat16 if an accelerator supports it; a CPU always computes in float32."""
    accumulation: int = Field(default=1, ge=1)
    """Parts that a batch is computed in, one after another; more need less memory."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay per step of a moving average of the weights, which is then the model; 0 for none."""
    compile_network: bool = False
    """Compile the network with torch.compile; the first steps then take minutes."""
    sync_batch_norm: bool = True
    """Take batch statistics over all accelerators of a step."""
    validate_every: int = Field(default=0, ge=0)
    """Epochs between two validations during training; 0 for none."""

    def _scheduled(self, epochs: int, learning_rate: float) -> "TrainConfig":
        shared: dict[str, Any] = {
            name: getattr(self, name) for name in OptimizationConfig.model_fields
        }
        return TrainConfig(epochs=epochs, learning_rate=learning_rate, **shared)


class Freeze(StrEnum):
    """Up to which part of a network its weights and batch statistics stay as they were given."""

    NONE = "none"
    STEM = "stem"
    LAYER1 = "layer1"
    LAYER2 = "layer2"


class TrainConfig(OptimizationConfig):
    """How round 0 is trained."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training images in round 0."""
    learning_rate: float = Field(default=2e-3, gt=0, lt=1)
    """Peak learning rate of round 0 (one-cycle schedule)."""
    freeze: Freeze = Freeze.NONE
    """Part of the network, and all before it, that keeps its initial weights in round 0."""
    head_learning_rate: float = Field(default=0.0, ge=0, lt=1)
    """Peak learning rate of the classifier's last layer in round 0; 0 takes `learning_rate`."""


class Pretext(StrEnum):
    """What a network learns from images alone before it sees a label."""

    NONE = "none"
    """Nothing: random weights."""
    RADIOMICS = "radiomics"
    """Radiomics of each cell of the heatmap's grid; the others after it are controls."""
    PERMUTED = "permuted"
    """The same of another image: what it keeps of a gain is not radiomics."""
    HOG = "hog"
    """Histograms of oriented gradients."""
    PIXELS = "pixels"
    """Hidden parts of the image."""


class PretrainConfig(OptimizationConfig):
    """How an encoder is pre-trained."""

    pretext: Pretext = Pretext.NONE
    """What the network learns from images before it sees a label."""
    pretext_epochs: int = Field(default=5, ge=1)
    """Passes of the pretext over the images."""
    pretext_learning_rate: float = Field(default=2e-3, gt=0, lt=1)
    """Peak learning rate of the pretext (one-cycle schedule)."""
    masked_fraction: float = internal(0.5, gt=0, lt=1)
    """Part of the image that the pretext `pixels` hides."""

    def training(self) -> TrainConfig:
        """Return the schedule as the training loop takes it."""
        return self._scheduled(self.pretext_epochs, self.pretext_learning_rate)


class RetrainConfig(OptimizationConfig):
    """How a guided round is trained."""

    round_epochs: int = Field(default=3, ge=1)
    """Passes over the training images in each guided round."""
    round_learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    """Peak learning rate of the guided rounds."""
    min_improvement: float = Field(default=-0.03, ge=-1, le=1)
    """Rise of the best validation mean AUROC without which no round follows; negative: a fall that
    is borne, because a round often loses at first what the next ones gain."""
    guidance: GuidanceConfig = GuidanceConfig()
    """What guides the round."""
    reuse: bool = True
    """Take a finished result of equal inputs and settings instead of making it again."""

    def training(self) -> TrainConfig:
        """Return how one round is trained."""
        return self._scheduled(self.round_epochs, self.round_learning_rate)


class RegionConfig(Settings):
    """How a heatmap becomes a region."""

    region_threshold: float = stored_as("threshold", 0.6, gt=0, lt=1)
    """Fraction of a map's maximum that its region reaches."""
    blur_px: int = internal(5, ge=1)
    """Side of the Gaussian kernel applied after upsampling, odd, 1 for none."""
    min_side_px: int = internal(3, ge=2)
    """Shortest side of a region, in model pixels."""
    min_area_px: int = internal(9, ge=1)
    """Fewest pixels of a component."""
    max_area_fraction: float = internal(0.85, gt=0, le=1)
    """Largest part of the image that a box may cover."""
    border_px: int = internal(1, ge=1)
    """Outer pixels a box leaves free: radiomics refuses a mask without background."""

    @model_validator(mode="after")
    def _blur_is_odd(self) -> Self:
        require(self.blur_px % 2 == 1, "blur_px", self.blur_px, "odd and at least 1")
        return self


class RadiomicsConfig(Settings):
    """Settings of the 102 features."""

    bin_width: float = Field(default=8.0, gt=0, le=128)
    """Width of a radiomics grey-level bin on the 8-bit range."""
    spacing_mm: float = internal(1.0, gt=0)
    """Nominal distance between model pixels; fixed, so that X-rays of any source compare."""


class ThresholdRule(StrEnum):
    """What an operating threshold holds on the validation split."""

    SENSITIVITY = "sensitivity"
    """The highest threshold that flags at least this part of the positives."""
    SPECIFICITY = "specificity"
    """The lowest threshold that leaves at least this part of the negatives without a flag."""
    FLAG_RATE = "flag_rate"
    """The lowest threshold that flags at most this part of all X-rays."""


_TARGETS = (
    "a number in (0, 1), or specificity:0.95 or flag_rate:0.1, then others by finding if wanted, "
    "such as 0.9,Nodule=0.8,Mass=flag_rate:0.1"
)


class EvaluationConfig(Settings):
    """How models are evaluated."""

    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the patients for the 95% intervals."""
    target_sensitivity: str = Field(default="0.9", json_schema_extra={"needed": _TARGETS})
    """Target of the operating thresholds on validation, then others by finding: 0.9,Nodule=0.8."""
    min_positives: int = internal(10, ge=2)
    """Fewest positive validation cases a finding needs to be calibrated."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, augmentation and bootstrap."""

    @field_validator("target_sensitivity", mode="before")
    @classmethod
    def _targets_can_be_read(cls, value: object) -> str:
        try:
            _threshold_targets(str(value))
        except ValueError:
            require(False, "target_sensitivity", value, _TARGETS)
        return str(value)

    def threshold_target(self, finding: str) -> tuple[ThresholdRule, float]:
        """Return the rule of a finding's operating threshold, and its target in (0, 1)."""
        targets = _threshold_targets(self.target_sensitivity)
        return targets.get(finding, targets[""])

    @property
    def target_findings(self) -> tuple[str, ...]:
        """Findings with a target of their own."""
        return tuple(name for name in _threshold_targets(self.target_sensitivity) if name)


class PublishConfig(Settings):
    """When a model is published, and what it may lose against the champion."""

    replace_incomparable: bool = False
    """Publish also if the champion knows other findings."""
    allow_missing_thresholds: bool = False
    """Publish also a model that has no operating threshold for any finding."""
    min_auroc_gain: float = Field(default=0.0, ge=-1, lt=1)
    """Rise of the mean AUROC on the test patients that a model must exceed to be champion."""
    max_finding_loss: float = Field(default=0.05, ge=0, le=1)
    """Most that the AUROC of one finding may fall below the champion's on the test patients."""
    max_localization_loss: float = Field(default=0.05, ge=0, le=1)
    """Most that the share of peaks in a true box may fall below the champion's."""
    max_calibration_error: float = Field(default=0.10, ge=0, le=1)
    """Calibration error on the test patients that a model may have if the champion's is less."""
    model_name: str = Field(default="chexradinet", min_length=1)
    """Name of the model in the Model Registry, if there is one (MODEL_REGISTRY_URL)."""
    min_cases: int = internal(10, ge=2)
    """Fewest positive test cases, or boxed cases, on which a loss is judged."""


def _threshold_targets(text: str) -> dict[str, tuple[ThresholdRule, float]]:
    """Return the targets by finding, that of all others under the empty name."""
    found = {}
    for part in text.split(","):
        name, _, target = part.rpartition("=")
        rule, _, value = target.strip().rpartition(":")
        number = float(value)
        if not 0 < number < 1 or name.strip() in found:
            raise ValueError(part)
        found[name.strip()] = (ThresholdRule(rule or ThresholdRule.SENSITIVITY), number)
    if "" not in found:
        raise ValueError(text)
    return found


class Arm(Settings):
    """One way to train."""

    pretext: Pretext = Pretext.NONE
    """Pretext of its encoder."""
    initial_weights: str = ""
    """torchvision state dict to start from instead, such as ImageNet's."""
    freeze: Freeze = Freeze.NONE
    """Part that is not fine-tuned."""
    epochs: int = Field(default=0, ge=0)
    """Passes over the labelled images; 0 takes those of `training`."""
    rounds: int = Field(default=0, ge=0, le=MAX_ROUNDS_LIMIT)
    """Most guided rounds after fine-tuning."""
    guidance: GuidanceConfig = GuidanceConfig()
    """What guides them."""
    stops: bool = True
    """End the rounds when validation no longer improves, and take the best; otherwise run all of
    them, and take the last."""

    @model_validator(mode="after")
    def _starts_once(self) -> Self:
        both = bool(self.initial_weights) and self.pretext is not Pretext.NONE
        require(not both, "initial_weights", self.initial_weights, "empty if there is a pretext")
        return self


class StudyPlan(Settings):
    """Content of `study.yaml`."""

    arms: dict[str, Arm] = Field(min_length=2)
    """Ways to train, by name."""
    comparisons: list[tuple[str, str]] = Field(min_length=1)
    """Pairs of arms; the first is compared with the second."""
    labels: list[int] = Field(default=[50, 100, 200, 400, 0], min_length=1)
    """Numbers of labelled images; 0 for all."""
    seeds: list[int] = Field(default=[0, 1, 2, 3, 4], min_length=2)
    """Seeds of weights, order, augmentation and choice of labelled images."""
    margin: float = Field(default=0.01, gt=0, lt=1)
    """Difference in mean AUROC, or in the rate of hits, that is too small to matter."""
    resamples: int = Field(default=500, ge=100)
    """Resamples of the patients."""
    seen_before: str = "not stated"
    """When these data were looked at before this plan was fixed, and by whom."""
    variants_tried: int = Field(default=0, ge=0)
    """Variants that were tried before this plan and are not in it."""
    network: NetworkConfig = NetworkConfig()
    pretrain: PretrainConfig = PretrainConfig()
    training: TrainConfig = TrainConfig()
    retrain: RetrainConfig = RetrainConfig()
    """Schedule of the guided rounds, and the rise of validation without which they end."""

    @model_validator(mode="after")
    def _comparisons_are_of_arms(self) -> Self:
        known = ", ".join(self.arms)
        for pair in self.comparisons:
            for name in pair:
                require(name in self.arms, "comparisons", name, f"one of {known}")
        return self

    def num_parts(self, at_most: int) -> int:
        """Return in how many parts it runs: one per arm and seed, unless there are too many."""
        return min(at_most, len(self.arms) * len(self.seeds))

    def as_yaml(self) -> str:
        """Return it as the content of a `study.yaml`: JSON, which is YAML too."""
        return json.dumps(self.struct(), indent=1) + "\n"
