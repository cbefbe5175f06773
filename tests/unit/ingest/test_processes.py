import os
import subprocess
import sys
from pathlib import Path

import pytest

from chexradinet.errors import RejectedImageError
from chexradinet.ingest.decoding import Outcome, decode_in_order
from chexradinet.rejection import reject_on_error

# Each "file" is an expression and `eval` is the decoder: it can be sent to another process, unlike
# a function of a test, and it can end the process it runs in.
DECODE = eval
CRASH = "__import__('os')._exit(1)"
BLOCKED = "__import__('time').sleep(100)"
"""Stands where a decoder hangs in compiled code: nothing in Python interrupts it."""
HOG = "[bytes(1 << 28) for _ in range(1 << 20)]"
KILLED = "__import__('os').kill(__import__('os').getpid(), 9)"
"""What the kernel does to a process that takes too much memory."""


def limited(text: str) -> object:
    """Decode in the limits of a file."""
    try:
        with reject_on_error(timeout_s=0.5):
            return DECODE(text)
    except RejectedImageError as error:
        return error


def outcomes(files: list[str], num_workers: int, isolated: bool = False) -> list[Outcome]:
    return list(decode_in_order(files, DECODE, num_workers, isolated))


def test_no_files_start_no_process() -> None:
    assert outcomes([], 0) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_that_kills_its_process_is_rejected_and_the_others_are_not(num_workers: int) -> None:
    files = [str(number) for number in range(10)]
    files[5] = CRASH
    found = outcomes(files, num_workers, isolated=True)
    (crashed,) = [item for item in found if isinstance(item, RejectedImageError)]
    assert found.index(crashed) == 5
    assert crashed.reason == "unreadable"
    assert found[:5] + found[6:] == [0, 1, 2, 3, 4, *range(6, 10)]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (BLOCKED, "too_slow"),
        ("exec('while True: pass')", "too_slow"),
        (HOG, "too_large"),
        (KILLED, "too_large"),
    ],
)
def test_file_over_a_limit_is_rejected_and_the_rest_goes_through(file: str, reason: str) -> None:
    files = [*"01234", file, *"567", file, "8"]
    found = list(decode_in_order(files, limited, 2))
    assert [item for item in found if not isinstance(item, RejectedImageError)] == list(range(9))
    refused = [item for item in found if isinstance(item, RejectedImageError)]
    assert [item.reason for item in refused] == [reason, reason]
    assert found.index(refused[0]) == 5


def test_number_of_workers_follows_from_processors_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chexradinet.ingest.decoding.START_S", 0)
    monkeypatch.setattr("chexradinet.ingest.decoding.workers_for", lambda each, own: 2)
    files = ["__import__('os').getpid()"] * 200
    found = {str(item) for item in outcomes(files, 0)}
    assert str(os.getpid()) in found
    assert len(found) in (2, 3)
    isolated = {str(item) for item in outcomes(files, 0, isolated=True)}
    assert str(os.getpid()) not in isolated


def test_processes_that_cannot_start_are_no_fault_of_the_files(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from chexradinet.ingest.decoding import decode_in_order\n"
        "print(list(decode_in_order(['1', '2'], eval, 2)))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "WorkerError: worker processes end before they do anything" in ended.stderr
    assert ended.stdout == ""
