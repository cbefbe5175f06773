"""Who is at work: taking, renewing, taking over and giving back the lease."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from chexradinet.nightly import ledger as lease
from chexradinet.nightly.ledger import (
    Ledger,
    Owner,
    acquire,
    holding,
    open_ledger,
    release,
    this_process,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return the ledger of an empty folder of results."""
    return open_ledger(str(tmp_path))


@pytest.fixture
def other() -> Owner:
    """Return a run that works on another machine."""
    return Owner(run_id="other", hostname="elsewhere", boot_id="b", pid=1, started="1")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """Return a process of this machine that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_lease_that_cannot_be_read_counts_as_given_back(ledger: Ledger) -> None:
    ledger.store.put(ledger.key("ledger", "lease.json"), b"{")
    assert acquire(ledger, this_process("mine"))


def test_of_two_runs_the_second_is_refused_until_the_first_gives_the_lease_back(
    ledger: Ledger, other: Owner
) -> None:
    assert acquire(ledger, other)
    assert not acquire(ledger, this_process("mine"))
    release(ledger, "mine")  # not mine to give back
    assert not acquire(ledger, this_process("mine"))
    release(ledger, "other")
    assert acquire(ledger, this_process("mine"))


def test_a_store_whose_clock_was_set_back_does_not_hold_a_lease_for_days(
    ledger: Ledger, other: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acquire(ledger, replace(other, ttl_s=100.0))
    now = lease.store_time(ledger)
    monkeypatch.setattr(lease, "store_time", lambda _: now - timedelta(days=9))
    assert acquire(ledger, this_process("mine"))


def test_stages_of_one_run_share_the_lease(ledger: Ledger) -> None:
    assert acquire(ledger, Owner(run_id="run", hostname="pod-1", pid=7, boot_id="a", started="1"))
    assert acquire(ledger, Owner(run_id="run", hostname="pod-2", pid=7, boot_id="b", started="2"))


def test_a_lease_is_over_by_the_clock_of_the_store_alone(
    ledger: Ledger, other: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acquire(ledger, replace(other, ttl_s=100.0))
    now = lease.store_time(ledger)
    monkeypatch.setattr(lease, "store_time", lambda _: now + timedelta(seconds=99))
    assert not acquire(ledger, this_process("mine"))
    monkeypatch.setattr(lease, "store_time", lambda _: now - timedelta(seconds=99))
    assert not acquire(ledger, this_process("mine"))
    monkeypatch.setattr(lease, "store_time", lambda _: now + timedelta(seconds=101))
    assert acquire(ledger, this_process("mine"))


def test_the_lease_of_a_process_that_was_killed_here_is_taken_over_at_once(
    ledger: Ledger, sleeper: "subprocess.Popen[bytes]"
) -> None:
    started = lease._started(sleeper.pid) or ""
    held = replace(this_process("killed"), pid=sleeper.pid, started=started)
    assert acquire(ledger, held)
    assert not acquire(ledger, this_process("mine"))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # a zombie, its number still taken
    assert acquire(ledger, this_process("mine"))


def test_a_number_that_another_process_got_meanwhile_is_no_sign_of_life(ledger: Ledger) -> None:
    assert acquire(ledger, replace(this_process("killed"), started="1"))
    assert acquire(ledger, this_process("mine"))


def test_a_stage_renews_its_lease_while_it_works(ledger: Ledger) -> None:
    key = ledger.key("ledger", "lease.json")
    with holding(ledger, this_process("mine", ttl_s=0.2)) as ours:
        assert ours
        before = ledger.store.stat(key).etag
        for _ in range(1200):
            if ledger.store.stat(key).etag != before:
                break
            time.sleep(0.05)
        assert ledger.store.stat(key).etag != before


@pytest.mark.parametrize(("last", "holder"), [(False, "mine"), (True, "")])
def test_between_stages_the_lease_stays_with_the_run_and_the_last_gives_it_back(
    ledger: Ledger, last: bool, holder: str
) -> None:
    with holding(ledger, this_process("mine"), last=last):
        pass
    held = json.loads(ledger.store.get(ledger.key("ledger", "lease.json")))
    assert (held["run_id"], held["pid"]) == (holder, 0)


def test_a_stage_that_fails_gives_the_lease_back(ledger: Ledger, other: Owner) -> None:
    with pytest.raises(ValueError, match="broken"), holding(ledger, this_process("mine")):
        raise ValueError("broken")
    assert acquire(ledger, other)


@pytest.mark.parametrize("end", ["error", "sigterm"])
def test_a_stage_that_fails_or_is_asked_to_end_leaves_no_lease(ledger: Ledger, end: str) -> None:
    key = ledger.key("ledger", "lease.json")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises((SystemExit, ZeroDivisionError)) as raised:  # noqa: PT012, SIM117
        with holding(ledger, this_process("mine")):
            assert json.loads(ledger.store.get(key))["run_id"] == "mine"
            if end == "sigterm":
                signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError
    assert json.loads(ledger.store.get(key))["run_id"] == ""
    assert signal.getsignal(signal.SIGTERM) is before
    if end == "sigterm":
        assert isinstance(raised.value, SystemExit)
        assert raised.value.code == 143
