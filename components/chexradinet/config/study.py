"""Plan of a study: what is compared, by what, fixed before it runs."""

from typing import Self

from pydantic import Field, model_validator

from chexradinet.config.base import Settings, require
from chexradinet.config.training import (
    MAX_ROUNDS_LIMIT,
    Freeze,
    GuidanceConfig,
    NetworkConfig,
    Pretext,
    PretrainConfig,
    RetrainConfig,
    TrainConfig,
)


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
