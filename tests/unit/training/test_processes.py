"""Processes of a training: like one, all or none; told to stop, they continue from there."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chexradinet.artifacts import write_document
from chexradinet.config import GuidanceConfig, GuidanceRecipe, NetworkConfig, TrainConfig
from chexradinet.errors import ConfigError, Interrupted, StoreUnavailableError, TrainingError
from chexradinet.model.batches import Regions, TrainingData
from chexradinet.model.bundle import load_bundle
from chexradinet.model.checkpoint import KIND, POSITION_FILE, SCHEMA
from chexradinet.model.distributed import Ranks
from chexradinet.model.losses import build_heads
from chexradinet.model.resnet import build_network
from chexradinet.model.training import fit
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from chexradinet.training import processes
from chexradinet.training.processes import Safeguard, num_processes, on_processes, safeguard

GPU = "nvidia.com/gpu"
CONFIG = TrainConfig(epochs=2, batch_size=10, learning_rate=1e-3, num_threads=1)
GUIDED, NONE = (
    GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE),
    GuidanceConfig(guidance=GuidanceRecipe.NONE),
)


def fitted(target: Path, config: TrainConfig, guidance: GuidanceConfig) -> None:
    """Train on 28 images, of which some have two regions and some labels are unknown."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (28, 32, 32)).astype(np.uint8)
    labels = generator.choice([0.0, 1.0, np.nan], (28, 2)).astype(np.float32)
    data = TrainingData(images=images, labels=labels, rows=np.arange(28))
    features = generator.normal(size=(40, 102)).astype(np.float32)
    regions = Regions(image_row=generator.integers(0, 28, 40), features=features)
    network = build_network(NetworkConfig(backbone="resnet18-narrow", map_stride=8), 2, seed=0)  # type: ignore[arg-type]
    heads = build_heads(64, seed=0)
    history = fit(network, heads, data, config, guidance, regions=regions, device="cpu")
    if Ranks.current().is_writer:
        state = {**network.state_dict(), **heads.state_dict()}
        weights = {name: value.contiguous() for name, value in state.items()}
        save_file(weights, target.with_suffix(".safetensors"))
        target.write_text(json.dumps(history))


RUNS = {
    "guided": (CONFIG, GUIDED),
    "accumulated and averaged": (CONFIG.changed(accumulation=2, ema_decay=0.9), GUIDED),
    "bare": (CONFIG, NONE),
    "statistics apart": (CONFIG.changed(sync_batch_norm=False), NONE),
}


def all_fitted(folder: Path, names: list[str]) -> None:
    """Train one after the other, since processes take longer to start than to train this."""
    for name in names:
        fitted(folder / name, *RUNS[name])


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two processes trained."""
    folder = tmp_path_factory.mktemp("two processes")
    names = ["guided", "accumulated and averaged", "statistics apart"]
    on_processes(2, all_fitted, folder, names)
    return folder


def losses(path: Path) -> Any:  # noqa: ANN401 - JSON
    """Return what a training said of its epochs."""
    return json.loads(path.read_text())


@pytest.mark.trains
@pytest.mark.parametrize("name", ["guided", "accumulated and averaged"])
def test_two_processes_train_like_one(together: Path, tmp_path: Path, name: str) -> None:
    all_fitted(tmp_path, [name])
    for one, two in zip(losses(tmp_path / name), losses(together / name), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-4)
        assert two["parts"] == pytest.approx(one["parts"], rel=2e-3)
    file = f"{name}.safetensors"
    weights, expected = load_file(together / file), load_file(tmp_path / file)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=5e-3, atol=5e-3, msg=key)


@pytest.mark.trains
def test_statistics_of_each_process_alone_give_another_network(
    together: Path, tmp_path: Path
) -> None:
    all_fitted(tmp_path, ["bare"])
    one, two = losses(tmp_path / "bare")[0], losses(together / "statistics apart")[0]
    assert two["loss"] != pytest.approx(one["loss"], rel=2e-4)
    assert two["loss"] == pytest.approx(one["loss"], rel=0.3)


@pytest.mark.trains
def test_batches_smaller_than_the_number_of_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"ConfigError.*too small for 2 processes"):
        on_processes(2, fitted, tmp_path / "x", CONFIG.changed(accumulation=9), NONE)


def killed(marker: Path) -> None:
    """End the second process without notice; the first waits for ever."""
    if Ranks.current().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    marker.write_text("waiting")
    while True:
        time.sleep(0.05)


@pytest.mark.trains
def test_a_process_that_dies_ends_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"process 1 of 2 ended the training: .*SIGKILL"):
        on_processes(2, killed, tmp_path / "marker")


@pytest.mark.parametrize("number", ["two", "-1", "1.5", ""])
def test_number_of_accelerators_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(ConfigError, match="accelerator_count"):
        num_processes(GPU, number)


def test_more_accelerators_than_visible_are_refused_before_training() -> None:
    visible = torch.cuda.device_count()
    asked = max(2, visible + 1)
    with pytest.raises(ConfigError, match=rf"is {asked}, but torch sees {visible} of {GPU}"):
        num_processes(GPU, asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees an accelerator")
def test_one_accelerator_that_is_not_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert num_processes(GPU, 1) == 1
    assert "this stage runs on the processor" in caplog.text


@pytest.mark.parametrize(("kind", "number"), [("", "4"), (GPU, "0"), (GPU, 0)])
def test_no_accelerator_is_one_process(kind: str, number: str | int) -> None:
    assert num_processes(kind, number) == 1


PROGRAM = """
import logging, sys
from pathlib import Path
from chexradinet.config import NetworkConfig, TrainConfig
from chexradinet.training.train import train
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    config = TrainConfig(epochs=int(sys.argv[3]), batch_size=8, num_threads=1)
    network = NetworkConfig(backbone="resnet18-narrow", map_stride=8)
    train(Path(sys.argv[1]), Path(sys.argv[2]), network, config, processes=2)
"""


@pytest.mark.trains
def test_asked_to_end_two_processes_keep_their_state_once_and_continue(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train_two.py"
    script.write_text(PROGRAM)
    state, target = tmp_path / "state", tmp_path / "model"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CHEXRADINET_CHECKPOINT_URI": str(state)}
    command = [sys.executable, str(script), str(tiny_dataset), str(target), "4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 1 of 4" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Interrupted: SIGTERM ended the training" in said
    (kept,) = state.glob("*/step-*/position.json")
    step = json.loads(kept.read_text())["step"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert f"step-{step:09d}" in said
    assert not [path for path in state.rglob("*.*") if "finished-" not in str(path)]
    assert len(load_bundle(target).info.history or []) == 4


RUN = "0123abcd"


def _write_state(guard: Safeguard, step: int) -> None:
    """Write what `fit` writes, as far as keeping and restoring look at it."""
    guard.local.mkdir(exist_ok=True)
    (guard.local / "state.safetensors").write_bytes(b"weights of step %d" % step)
    write_document(guard.local / POSITION_FILE, KIND, SCHEMA, {"step": step})


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_without_a_uri_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    with safeguard(RUN) as guard:
        assert guard.checkpoint is None
        assert not guard.should_stop()


def test_a_signal_without_a_uri_says_how_to_keep_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    with pytest.raises(Interrupted, match=f"SIGTERM.*no state is kept: set {CHECKPOINT_VARIABLE}"):
        _stop_in_fit()


def _stop_in_fit(uri: str | None = None) -> None:
    with safeguard(RUN, uri) as guard:
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop()
        if uri:
            _write_state(guard, 7)
        raise Interrupted("as `fit` does")


def test_state_at_a_signal_is_kept_and_restored(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=rf"step-000000007 is kept in {tmp_path}/{RUN}: run"):
        _stop_in_fit(str(tmp_path))
    with safeguard(RUN, str(tmp_path)) as guard:
        assert (guard.local / "state.safetensors").read_bytes() == b"weights of step 7"
    assert _names(tmp_path) == []


def test_the_uri_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path))
    with safeguard(RUN) as guard:
        assert guard.folder == f"{tmp_path}/{RUN}"


def test_another_run_does_not_see_the_state(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        _stop_in_fit(str(tmp_path))
    with safeguard("another", str(tmp_path)) as guard:
        assert not guard.local.exists()
    assert len(_names(tmp_path / RUN)) == 2


def test_only_the_newest_state_stays(tmp_path: Path) -> None:
    with safeguard(RUN, str(tmp_path)) as guard:
        for step in (3, 12):
            _write_state(guard, step)
            assert not guard.should_stop()
        assert {name.split("/")[0] for name in _names(tmp_path / RUN)} == {"step-000000012"}


def test_a_half_uploaded_state_is_passed_over(tmp_path: Path) -> None:
    with safeguard(RUN, str(tmp_path)) as guard:
        _write_state(guard, 3)
        guard.keep()
        torn = tmp_path / RUN / "step-000000009"
        torn.mkdir()
        (torn / "state.safetensors").write_bytes(b"torn")
        with safeguard(RUN, str(tmp_path)) as again:
            assert (again.local / "state.safetensors").read_bytes() == b"weights of step 3"


def test_a_damaged_state_is_left_for_a_start_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Interrupted):
        _stop_in_fit(str(tmp_path))
    damaged = tmp_path / RUN / "step-000000007" / "state.safetensors"
    damaged.write_bytes(b"weights of step 8")
    with safeguard(RUN, str(tmp_path)) as guard:
        assert not guard.local.exists()
    assert "starts over" in caplog.text


def test_a_store_that_fails_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailableError("no route to the store")

    with safeguard(RUN, str(tmp_path)) as guard:
        monkeypatch.setattr(processes, "upload_directory", fail)
        _write_state(guard, 3)
        assert not guard.should_stop()
    assert "no route to the store" in caplog.text
    assert guard.newest == ""


def test_a_signal_after_training_ends_the_flow_at_once(tmp_path: Path) -> None:
    reached = []

    def validating() -> None:
        with safeguard(RUN, str(tmp_path)) as guard:
            _write_state(guard, 20)
            guard.trained()
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("validation went on")

    with pytest.raises(Interrupted, match="step-000000020 is kept"):
        validating()
    assert not reached


def test_a_signal_in_the_last_step_is_not_lost() -> None:
    def training() -> None:
        with safeguard(RUN, "") as guard:
            os.kill(os.getpid(), signal.SIGINT)
            guard.trained()

    with pytest.raises(Interrupted, match="SIGINT"):
        training()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with safeguard(RUN, ""):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_thread_keeps_state_without_signals(tmp_path: Path) -> None:
    seen: list[bool] = []

    def flow() -> None:
        with safeguard(RUN, str(tmp_path)) as guard:
            _write_state(guard, 1)
            seen.append(guard.should_stop())

    thread = threading.Thread(target=flow)
    thread.start()
    thread.join()
    assert seen == [False]


def test_it_is_time_to_save_after_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with safeguard(RUN, str(tmp_path)) as guard:
        assert not guard.should_save()
        monkeypatch.setattr(processes, "SAVE_INTERVAL_S", 0.0)
        assert guard.should_save()
        monkeypatch.setattr(processes, "SAVE_INTERVAL_S", 600.0)
        assert not guard.should_save()
        guard._saved_at -= 600.0
        assert guard.should_save()
        _write_state(guard, 5)
        guard.keep()
        assert not guard.should_save()


def test_one_line_of_the_log_names_the_signal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(Interrupted):
        _stop_in_fit("")
    assert [record.message for record in caplog.records] == [
        "SIGTERM: training stops after this step"
    ]
