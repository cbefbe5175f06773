"""The loop: when it looks at the loss, parts of a batch, averages, reading ahead, CUDA."""

import logging
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chexradinet.config import GuidanceConfig, TrainConfig
from chexradinet.errors import Interrupted, TrainingError
from chexradinet.model import batches, training
from chexradinet.model.batches import Batches, TrainingData, augment, read_ahead, steps_from
from chexradinet.model.losses import GuidanceHeads, guided_loss
from chexradinet.model.resnet import ChexRadiNet, build_network
from chexradinet.model.training import fit
from tests.unit.model.test_training import GUIDED, NONE, SETTINGS, _parts, _regions, _squares

pytestmark = pytest.mark.trains

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def _fit(
    config: TrainConfig = SETTINGS,
    guidance: GuidanceConfig = GUIDED,
    **arguments: Any,  # noqa: ANN401
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    network, heads = _parts()
    history = fit(network, heads, _squares(), config, guidance, regions=_regions(), **arguments)
    return history, _state(network, heads)


def _state(network: ChexRadiNet, heads: GuidanceHeads) -> dict[str, torch.Tensor]:
    return {**network.state_dict(), **heads.state_dict()}


def test_looking_at_the_loss_less_often_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    history, weights = _fit()
    monkeypatch.setitem(training.SYNC_STEPS, "cpu", 2)
    seen: list[tuple[int, int]] = []
    again, same = _fit(progress=lambda done, total, loss: seen.append((done, total)))
    assert seen == [(2, 6), (3, 6), (4, 6), (6, 6)]
    assert again == history
    assert all(torch.equal(same[name], value) for name, value in weights.items())


def test_loss_that_left_the_finite_numbers_between_two_looks_leaves_no_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(training.SYNC_STEPS, "cpu", 100)
    state = tmp_path / "state"
    network, heads = _parts()

    asked: list[None] = []

    def spoil_then_save() -> bool:
        with torch.no_grad():
            network.fc.bias.fill_(float("nan"))
        asked.append(None)
        return len(asked) == 2

    with pytest.raises(TrainingError, match="the loss is nan at step 2 of 6"):
        fit(
            network,
            heads,
            _squares(),
            SETTINGS,
            NONE,
            checkpoint=state,
            should_save=spoil_then_save,
        )
    assert not state.exists()


def test_a_record_per_epoch_names_loss_parts_rate_and_validation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([0.75])
    with caplog.at_level(logging.INFO):
        history, _ = _fit(SETTINGS.changed(validate_every=2), validate=lambda: next(answers))
    assert [sorted(record) for record in history] == [
        ["epoch", "learning_rate", "loss", "parts", "val_mean_auroc"]
    ] * 2
    assert [record["val_mean_auroc"] for record in history] == [None, 0.75]
    assert set(history[0]["parts"]) == {"classification", "entropy", "contrastive"}
    assert history[1]["learning_rate"] < history[0]["learning_rate"] < SETTINGS.learning_rate
    lines = [record.getMessage() for record in caplog.records if "epoch" in record.getMessage()]
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2 of 2: step 6 of 6, loss ")
    assert lines[1].endswith("validation mean AUROC 0.75")


def test_validating_on_the_way_changes_no_weight() -> None:
    _, weights = _fit()
    network, heads = _parts()
    shown: list[bool] = []

    def validate() -> float:
        shown.append(network.training)
        return 0.5

    config = SETTINGS.changed(validate_every=1)
    fit(network, heads, _squares(), config, GUIDED, regions=_regions(), validate=validate)
    assert shown == [False, False]
    assert all(torch.equal(value, weights[name]) for name, value in _state(network, heads).items())


def test_parts_of_a_batch_are_its_images_in_order_and_changed_alike() -> None:
    config = SETTINGS.changed(accumulation=3)
    data = _squares()
    whole = [part for (part,) in steps_from(data.rows, SETTINGS, 0)]
    split = list(steps_from(data.rows, config, 0))
    assert len(whole) == len(split) == 6
    device = torch.device("cpu")
    for one, parts in zip(whole, split, strict=True):
        assert np.concatenate([part.rows for part in parts]).tolist() == one.rows.tolist()
        given = Batches(data, None, config, device)
        inputs = [given.input(part, torch.from_numpy(data.fetch(part.rows))) for part in parts]
        expected = augment(torch.from_numpy(data.fetch(one.rows)), config, one.step)
        assert torch.equal(torch.cat(inputs), expected)


def test_accumulated_loss_is_the_mean_over_the_images_of_the_batch() -> None:
    whole, _ = _fit(SETTINGS.changed(epochs=1), NONE)
    parts, _ = _fit(SETTINGS.changed(epochs=1, accumulation=2), NONE)
    # Batch statistics are those of a part, so the losses are close and not equal.
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.1)
    assert parts[0]["loss"] != whole[0]["loss"]


def test_average_of_the_weights_becomes_the_model_and_resumes_to_the_bit(tmp_path: Path) -> None:
    config = SETTINGS.changed(ema_decay=0.8)
    _, plain = _fit()
    expected = _fit(config)[1]
    assert not torch.equal(expected["fc.weight"], plain["fc.weight"])
    steps: list[int] = []
    with pytest.raises(Interrupted):
        _fit(
            config,
            checkpoint=tmp_path / "state",
            progress=lambda done, total, loss: steps.append(done),
            should_stop=lambda: len(steps) == 4,
        )
    resumed = _fit(config, checkpoint=tmp_path / "state")[1]
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_average_follows_the_known_rule() -> None:
    config = TrainConfig(epochs=1, batch_size=48, num_threads=1, ema_decay=0.5)
    start = _parts()[0].state_dict()["fc.bias"].clone()
    _, plain = _fit(config.changed(ema_decay=0.0), NONE)
    _, averaged = _fit(config, NONE)
    # One step: the decay is min(0.5, 1 / 10), so nine tenths of the way are gone.
    torch.testing.assert_close(averaged["fc.bias"], torch.lerp(start, plain["fc.bias"], 0.9))


def test_images_beyond_the_memory_of_the_process_are_trained_on_where_they_lie(
    tmp_path: Path,
) -> None:
    path = tmp_path / "images.npy"
    # 4 GiB of which a file system stores no block.
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (1 << 20, 64, 64))
    del images
    labels = np.tile(np.array([0, 1], np.float32), (1 << 20, 1))
    rows = np.linspace(0, len(labels) - 1, 16).astype(np.int64)
    data = TrainingData(images=np.load(path, mmap_mode="r"), labels=labels, rows=rows)
    used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert used is not None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, ((int(used[1]) << 10) + (1 << 30), before[1]))
    try:
        network = build_network(_parts()[0].config, 2, seed=0)
        history = fit(network, None, data, SETTINGS, NONE, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert np.isfinite(history[-1]["loss"])


def test_reading_ahead_keeps_the_order_and_stays_a_few_items_ahead() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    read = read_ahead(source())
    assert [next(read) for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 3 + batches.BATCHES_AHEAD + 1
    assert list(read) == list(range(3, 50))


def test_what_reading_raises_is_raised_where_it_is_waited_for() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    read = read_ahead(source())
    assert next(read) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(read)


@pytest.mark.gpu
@gpu
def test_loss_in_bfloat16_is_finite_and_falls() -> None:
    history, _ = _fit(SETTINGS.changed(epochs=4), device="cuda")
    assert all(np.isfinite(record["loss"]) for record in history)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_state_of_one_device_resumes_on_the_other(tmp_path: Path, first: str, then: str) -> None:
    config = SETTINGS.changed(mixed_precision=False)
    whole, _ = _fit(config, device=then)
    steps: list[int] = []
    with pytest.raises(Interrupted):
        _fit(
            config,
            device=first,
            checkpoint=tmp_path / "state",
            progress=lambda done, total, loss: steps.append(done),
            should_stop=lambda: bool(steps),
        )
    resumed, _ = _fit(config, device=then, checkpoint=tmp_path / "state")
    for one, other in zip(whole, resumed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


@pytest.mark.gpu
@gpu
def test_resident_and_prefetched_images_give_the_same_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident, _ = _fit(device="cuda")
    monkeypatch.setattr(batches, "RESIDENT_FRACTION", 0.0)
    prefetched, _ = _fit(device="cuda")
    for one, other in zip(resident, prefetched, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)


@pytest.mark.gpu
@gpu
def test_no_step_within_an_epoch_waits_for_the_device() -> None:
    network, heads = _parts()
    data = _squares()
    fit(network, heads, data, SETTINGS.changed(epochs=1), GUIDED, regions=_regions())
    torch.cuda.set_sync_debug_mode("error")
    try:
        place = torch.device("cuda")
        made = Batches(data, _regions(), SETTINGS, place)
        network.train()
        for part, images in (
            step[0] for step in made._resident(steps_from(data.rows, SETTINGS, 0))
        ):
            found = network(made.input(part, images))
            pairs = made.pairs(part, found.embedding, heads)
            loss, _ = guided_loss(found, made.labels(part), GUIDED, pairs)
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        torch.cuda.set_sync_debug_mode("default")
