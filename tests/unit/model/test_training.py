"""The training loop: it learns, arms differ by their guidance alone, and it can be resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from chexradinet.config import Backbone, GuidanceConfig, GuidanceRecipe, NetworkConfig, TrainConfig
from chexradinet.errors import ConfigError, Interrupted, MismatchError, TrainingError
from chexradinet.model.batches import Regions, TrainingData, augment, epoch_batches, permuted
from chexradinet.model.inference import predict
from chexradinet.model.losses import GuidanceHeads, build_heads
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise
from chexradinet.model.training import fit

pytestmark = pytest.mark.trains
NAN = float("nan")
NONE = GuidanceConfig(guidance=GuidanceRecipe.NONE)
GUIDED = GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE)


def _squares(number: int = 48, side: int = 32) -> TrainingData:
    """Noise; every second image holds a bright square."""
    generator = np.random.default_rng(0)
    images = generator.integers(90, 130, (number, side, side)).astype(np.uint8)
    labels = (np.arange(number) % 2).astype(np.float32)[:, None]
    for image in images[1::2]:
        row, column = generator.integers(4, side - 12, 2)
        image[row : row + 8, column : column + 8] = 220
    return TrainingData(images=images, labels=labels, rows=np.arange(number))


def _regions(number: int = 48) -> Regions:
    features = np.random.default_rng(1).normal(size=(number, 102)).astype(np.float32)
    return Regions(image_row=np.arange(number), features=features)


def _parts() -> tuple[ChexRadiNet, GuidanceHeads]:
    config = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)
    return build_network(config, 1, seed=0), build_heads(64, seed=0)


SETTINGS = TrainConfig(epochs=2, batch_size=16, num_threads=1)


def _weights(network: ChexRadiNet, heads: GuidanceHeads) -> dict[str, torch.Tensor]:
    return {**network.state_dict(), **heads.state_dict()}


def test_training_without_any_label_is_refused() -> None:
    network, heads = _parts()
    unknown = replace(_squares(), labels=np.full((48, 1), NAN, np.float32))
    with pytest.raises(TrainingError, match="none of the 48 training images"):
        fit(network, heads, unknown, SETTINGS, NONE)


def test_contrastive_recipe_without_regions_is_refused() -> None:
    network, heads = _parts()
    with pytest.raises(ConfigError, match="needs heads and regions"):
        fit(network, heads, _squares(), SETTINGS, GUIDED)


def test_loss_that_is_not_finite_stops_and_names_the_step() -> None:
    network, heads = _parts()
    with torch.no_grad():
        network.fc.weight.fill_(NAN)
    with pytest.raises(TrainingError, match="the loss is nan at step 1 of 6; lower learning_rate"):
        fit(network, heads, _squares(), SETTINGS, NONE)


def test_one_class_labels_and_one_image_train_without_failing() -> None:
    network, heads = _parts()
    data = replace(_squares(), rows=np.array([1]))
    history = fit(network, heads, data, SETTINGS.changed(epochs=1), NONE)
    assert np.isfinite(history[0]["loss"])


@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps_can_be_scheduled(steps: int) -> None:
    network, heads = _parts()
    config = TrainConfig(epochs=steps, batch_size=2, num_threads=1)
    assert len(fit(network, heads, _squares(2), config, NONE)) == steps


def test_no_region_at_all_leaves_the_other_terms() -> None:
    network, heads = _parts()
    history = fit(network, heads, _squares(), SETTINGS, GUIDED, regions=_regions(0))
    assert history[0]["parts"]["contrastive"] == 0
    assert history[0]["parts"]["entropy"] > 0


def test_a_bright_square_is_learned_and_found() -> None:
    network, heads = _parts()
    data = _squares(64, side=64)
    settings = SETTINGS.changed(epochs=8)
    history = fit(network, heads, data, settings, GUIDED, regions=_regions(64))
    for part in ("classification", "entropy", "contrastive"):
        assert history[-1]["parts"][part] < 0.8 * history[0]["parts"][part]
    unseen = _squares(96, side=64)
    with_square = np.arange(65, 96, 2)
    positive = predict(network, unseen.fetch, with_square, device="cpu")
    negative = predict(network, unseen.fetch, with_square - 1, device="cpu")
    assert positive.logits.min() > negative.logits.max()
    found = []
    for image, heatmap in zip(unseen.fetch(with_square), positive.maps[:, 0], strict=True):
        peak = np.array(np.unravel_index(heatmap.argmax(), heatmap.shape)) * 8 + 3.5
        centre = np.argwhere(image == 220).mean(0)
        found.append(np.abs(peak - centre).max() < 8)  # the cell and the square overlap
    # Not all: which of two neighbouring cells wins depends on the processor's rounding.
    assert np.mean(found) >= 0.9


def test_equal_arguments_give_equal_weights_to_the_bit() -> None:
    runs = []
    for _ in range(2):
        network, heads = _parts()
        history = fit(network, heads, _squares(), SETTINGS, GUIDED, regions=_regions())
        runs.append((history, _weights(network, heads)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


def test_classification_alone_leaves_the_heads_untouched() -> None:
    network, heads = _parts()
    fit(network, heads, _squares(), SETTINGS, NONE, regions=_regions())
    untouched = _parts()[1].state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in heads.state_dict().items())


@pytest.mark.parametrize(
    "guidance",
    [
        NONE,
        GuidanceConfig(guidance=GuidanceRecipe.SHARPEN),
        GUIDED,
        GUIDED.changed(permute_radiomics=True),
    ],
)
def test_arms_see_equal_images_in_equal_order(
    guidance: GuidanceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = _squares(), []

    def fetch(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        seen.append(rows.tolist())
        found: NDArray[np.uint8] = data.fetch(rows)
        return found

    inputs: list[torch.Tensor] = []
    plain_forward = ChexRadiNet.forward

    def forward(self: ChexRadiNet, images: torch.Tensor) -> object:
        inputs.append(images.clone())
        return plain_forward(self, images)

    monkeypatch.setattr(ChexRadiNet, "forward", forward)
    network, heads = _parts()
    fit(network, heads, replace(data, images=fetch), SETTINGS, guidance, regions=_regions())
    batches = [b for epoch in (0, 1) for b in epoch_batches(data.rows, SETTINGS, epoch)]
    assert seen == [batch.tolist() for batch in batches]
    for step, (batch, given) in enumerate(zip(batches, inputs, strict=True)):
        images = torch.from_numpy(data.fetch(batch))
        assert torch.equal(given, augment(images, SETTINGS, step))


def test_permuting_changes_which_features_meet_which_image_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    regions, met = _regions(), {}
    for permute in (False, True):
        network, heads = _parts()
        calls: list[torch.Tensor] = []
        monkeypatch.setattr(
            heads.radiomics,
            "forward",
            lambda x, calls=calls, old=heads.radiomics.forward: (calls.append(x), old(x))[1],
        )
        guidance = GUIDED.changed(permute_radiomics=permute)
        fit(network, heads, _squares(), SETTINGS.changed(epochs=1), guidance, regions=regions)
        met[permute] = torch.cat(calls).numpy()
    assert met[True].shape == met[False].shape
    assert not np.array_equal(met[True], met[False])
    np.testing.assert_array_equal(np.sort(met[True], 0), np.sort(met[False], 0))
    same = (permuted(regions.features, 0) == regions.features).all(1)
    assert same.mean() < 0.2


def test_all_regions_of_the_images_of_a_batch_are_contrasted() -> None:
    network, heads = _parts()
    twice = Regions(image_row=np.repeat(np.arange(48), 2), features=_regions(96).features)
    seen: list[int] = []
    heads.radiomics.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    fit(network, heads, _squares(), SETTINGS.changed(epochs=1), GUIDED, regions=twice)
    assert seen == [32, 32, 32]


def test_every_row_is_seen_once_an_epoch_in_batches_of_equal_size() -> None:
    rows = np.arange(100, 137)
    batches = epoch_batches(rows, SETTINGS, 3)
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert {len(batch) for batch in batches} == {12, 13}


def test_augmentation_of_nothing_is_normalisation() -> None:
    images = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    still = TrainConfig(max_shift_fraction=0, max_contrast_change=0, max_brightness_change=0)
    assert torch.equal(augment(images, still, 5), normalise(images))


def test_shift_repeats_the_border_and_stays_within_its_limit() -> None:
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(64, 16, 16)
    moving = TrainConfig(max_shift_fraction=1 / 8, max_contrast_change=0, max_brightness_change=0)
    moved = ((augment(ramp, moving, 0) * 0.25 + 0.5) * 255).round().int()[:, 0]
    shifts = (moved[:, 0, 8] - 80) // 10
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}
    assert all(row.unique().tolist() == sorted(row.unique().tolist()) for row in moved[:, 0])
    assert moved.min() == 0
    assert moved.max() == 150


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(
    tmp_path: Path, stop_after: int
) -> None:
    network, heads = _parts()
    whole = fit(network, heads, _squares(), SETTINGS, GUIDED, regions=_regions())
    expected = _weights(network, heads)

    steps: list[int] = []
    network, heads = _parts()
    with pytest.raises(Interrupted, match=f"after step {stop_after} of 6"):
        fit(
            network,
            heads,
            _squares(),
            SETTINGS,
            GUIDED,
            regions=_regions(),
            progress=lambda done, total, loss: steps.append(done),
            checkpoint=tmp_path / "state",
            should_stop=lambda: len(steps) == stop_after,
        )
    network, heads = _parts()
    resumed = fit(
        network,
        heads,
        _squares(),
        SETTINGS,
        GUIDED,
        regions=_regions(),
        progress=lambda done, total, loss: steps.append(done),
        checkpoint=tmp_path / "state",
    )
    assert steps == [1, 2, 3, 4, 5, 6]
    assert resumed == whole
    given = _weights(network, heads)
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    network, heads = _parts()
    state = tmp_path / "state"
    settings = SETTINGS.changed(epochs=1)
    fit(network, heads, _squares(), settings, NONE, checkpoint=state)
    network, heads = _parts()
    with pytest.raises(MismatchError, match="another run"):
        fit(network, heads, _squares(), settings.changed(seed=1), NONE, checkpoint=state)


def test_thread_count_is_restored() -> None:
    network, heads = _parts()
    torch.set_num_threads(2)
    used: list[int] = []
    fit(
        network,
        heads,
        _squares(16),
        SETTINGS.changed(epochs=1),
        NONE,
        progress=lambda done, total, loss: used.append(torch.get_num_threads()),
    )
    assert used == [1]
    assert torch.get_num_threads() == 2
