import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chexradinet.dataset.images import reject_on_error
from chexradinet.errors import RejectedImageError
from chexradinet.ingest.decoding import FEW_FILES, decode_in_order

# Each "file" is an expression and `eval` is the decoder: it can be sent to another process, unlike
# a function of a test, and it can end the process it runs in.
DECODE = eval
CRASH = "__import__('os')._exit(1)"
BLOCKED = "__import__('time').sleep(100)"
"""Stands where a decoder hangs in compiled code: nothing in Python interrupts it."""
HOG = "[bytes(1 << 28) for _ in range(1 << 20)]"
TOUCHING_HOG = "[b'x' * (1 << 24) for _ in range(1 << 20)]"
KILLED = "__import__('os').kill(__import__('os').getpid(), 9)"
"""What the kernel does to a process that takes too much memory."""


def limited(text: str) -> object:
    """Decode in the limits of a file."""
    try:
        with reject_on_error(timeout_s=0.5):
            return DECODE(text)
    except RejectedImageError as error:
        return error


def outcomes(files: list[str], num_workers: int) -> list[object]:
    return list(decode_in_order(files, DECODE, num_workers))


def test_no_files_start_no_process() -> None:
    assert outcomes([], 0) == []


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_file_that_kills_its_process_is_rejected_and_the_others_are_not(num_workers: int) -> None:
    files = [str(number) for number in range(10)]
    files[5] = CRASH
    found = outcomes(files, num_workers)
    (crashed,) = [item for item in found if isinstance(item, RejectedImageError)]
    assert found.index(crashed) == 5
    assert crashed.reason == "unreadable"
    assert found[:5] + found[6:] == [0, 1, 2, 3, 4, *range(6, 10)]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (BLOCKED, "too_slow"),
        ("exec('while True: pass')", "too_slow"),
        (HOG, "too_large"),
        (KILLED, "too_large"),
    ],
)
def test_file_over_a_limit_is_rejected_and_the_rest_goes_through(
    file: str, reason: str, num_workers: int
) -> None:
    files = [*"01234", file, *"567", file, "8"]
    found = list(decode_in_order(files, limited, num_workers))
    assert [item for item in found if not isinstance(item, RejectedImageError)] == list(range(9))
    refused = [item for item in found if isinstance(item, RejectedImageError)]
    assert [item.reason for item in refused] == [reason, reason]
    assert found.index(refused[0]) == 5


def test_number_of_workers_follows_from_processors_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chexradinet.ingest.decoding.workers_for", lambda each, own: 2)
    process = "__import__('time').sleep(0.01) or __import__('os').getpid()"
    assert len(set(outcomes([process] * FEW_FILES, 0))) == 1
    found = set(outcomes([process] * (FEW_FILES + 1), 0))
    assert len(found) == 2
    assert os.getpid() not in found


def test_workers_have_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("CHEXRADINET_TEST", value)
        assert outcomes(["__import__('os').environ['CHEXRADINET_TEST']"], 1) == [value]


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


GROUP_BYTES = 512 << 20
IN_GROUP = """
import os, sys
from collections.abc import Iterator
from pathlib import Path
from chexradinet.ingest.decoding import decode_in_order
from tests.unit.ingest.test_processes import DECODE, TOUCHING_HOG

if __name__ == "__main__":
    (Path(sys.argv[1]) / "cgroup.procs").write_text(str(os.getpid()))
    found = list(decode_in_order([*"012", TOUCHING_HOG, *"345"], DECODE, 1))
    print(*(getattr(outcome, "reason", outcome) for outcome in found))
"""


@pytest.fixture
def memory_group(tmp_path: Path) -> Iterator[Path]:
    """Return a control group of so much memory, made below that of this process."""
    groups = (line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines())
    own = next((path for _, controllers, path in groups if controllers == "memory"), None)
    mount = tmp_path / "control-groups"
    mount.mkdir()
    command = ["mount", "-t", "cgroup", "-o", "memory", "none", str(mount)]
    if own is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root, and a memory control group of version 1")
    group = mount / own.strip("/") / f"chexradinet-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
        yield group
    finally:
        while (group / "cgroup.procs").read_text():  # a process that is ending
            time.sleep(0.02)
        group.rmdir()
        subprocess.run(["umount", str(mount)], check=True)


def test_a_file_that_fills_the_memory_of_the_container_costs_its_worker_alone(
    memory_group: Path,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", IN_GROUP, str(memory_group)],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.stdout.split() == [*"012", "too_large", *"345"]
    control = (memory_group / "memory.oom_control").read_text()
    assert "oom_kill 0" not in control, "the kernel ended a process"
