"""Training that is told to stop stops, says where its state is, and continues from there."""

import logging
import os
import signal
import threading
from pathlib import Path

import pytest

from chexradinet.artifacts import write_document
from chexradinet.errors import Interrupted, StoreUnavailableError
from chexradinet.model.checkpoint import KIND, POSITION_FILE, SCHEMA
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from chexradinet.training import processes as interruption
from chexradinet.training.processes import Safeguard, safeguard

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
        monkeypatch.setattr(interruption, "upload_directory", fail)
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
        monkeypatch.setattr(interruption, "SAVE_INTERVAL_S", 0.0)
        assert guard.should_save()
        monkeypatch.setattr(interruption, "SAVE_INTERVAL_S", 600.0)
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
