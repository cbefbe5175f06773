"""Settings are checked where they are made, and digests say whether they are equal."""

from collections.abc import Callable

import pytest

from chexradinet.config import (
    EvaluationConfig,
    GeometryMode,
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    PreprocessingConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
    canonical_json,
)
from chexradinet.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PreprocessingConfig(image_side=8), "image_side is 8"),
        (lambda: NetworkConfig(map_stride=4), "map_stride is 4"),
        (lambda: NetworkConfig(backbone="resnet19"), "backbone is 'resnet19'"),  # type: ignore[arg-type]
        (lambda: GuidanceConfig(guidance="sharp"), "guidance is 'sharp'"),  # type: ignore[arg-type]
        (lambda: GuidanceConfig(sharpen_weight=0.6), "sharpen_weight is 0.6"),
        (lambda: GuidanceConfig(temperature=0), "temperature is 0"),
        (lambda: TrainConfig(batch_size=1), "batch_size is 1"),
        (lambda: TrainConfig(epochs=0), "epochs is 0"),
        (lambda: RegionConfig(region_threshold=1.0), "region_threshold is 1.0"),
        (lambda: RegionConfig(blur_px=4), "blur_px is 4"),
        (lambda: RegionConfig(border_px=0), "border_px is 0"),
        (lambda: RadiomicsConfig(bin_width=0), "bin_width is 0"),
        (lambda: EvaluationConfig(target_sensitivity="1.0"), "target_sensitivity is '1.0'"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_names_are_accepted_as_plain_text() -> None:
    given = PreprocessingConfig(geometry="pad")  # type: ignore[arg-type]
    assert given.geometry is GeometryMode.PAD


def test_the_preprocessing_digest_tells_sides_and_modes_apart() -> None:
    digests = {
        PreprocessingConfig(image_side=side, geometry=mode).digest()
        for side in (96, 224)
        for mode in GeometryMode
    }
    assert len(digests) == 4
    assert PreprocessingConfig().digest() == PreprocessingConfig(image_side=224).digest()


def test_a_recipe_tells_its_terms_and_its_arm() -> None:
    both = GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE, permute_radiomics=True)
    assert both.sharpens
    assert both.contrasts
    assert both.arm == "sharpen+contrastive@permuted"
    control = GuidanceConfig(guidance=GuidanceRecipe.NONE)
    assert not control.sharpens
    assert not control.contrasts


def test_canonical_json_does_not_depend_on_order_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": [2]}) == canonical_json({"a": [2], "b": 1})
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})
