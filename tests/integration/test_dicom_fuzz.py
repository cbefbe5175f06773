"""Damaged and hostile files end in a rejection: no crash, no hang, no flood of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_CASES = 5_000


def run_worker(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, which may die without ending the tests."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=800,
        check=False,
    )


def read_all(kind: str, seed: int, num_cases: int, *folder: str) -> str:
    """Let the worker read its cases, and return what came of them."""
    worker = f"tests.integration.{kind}_mutations"
    done = run_worker("-m", worker, str(seed), str(num_cases), *folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{num_cases} cases" in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_mutated_files_neither_crash_nor_hang(seed: int) -> None:
    ends = read_all("dicom", seed, NUM_CASES)
    assert "'read'" in ends
    assert "'unreadable'" in ends


@pytest.mark.slow
def test_mutated_real_files_neither_crash_nor_hang(shared_data: Path) -> None:
    read_all("dicom", 3, 2_000, str(shared_data / "radiographs" / "dicom"))


@pytest.mark.slow
def test_headers_that_contradict_themselves_end_in_a_rejection() -> None:
    ends = read_all("attribute", 4, 2_000)
    for end in ("read", "unreadable", "implausible", "truncated", "multi_frame", "inverted"):
        assert f"'{end}'" in ends


@pytest.mark.slow
def test_mutated_pictures_end_in_a_rejection() -> None:
    ends = read_all("picture", 5, 8_000)
    for end in ("read", "unreadable", "truncated", "not_an_image", "multi_frame", "implausible"):
        assert f"'{end}'" in ends


def test_an_error_other_than_a_rejection_fails_the_worker() -> None:
    done = run_worker(
        "-c",
        "from tests.integration.mutations import read_cases;"
        "read_cases(0, 1, lambda random: b'', lambda content: 1 / 0)",
    )
    assert done.returncode != 0
    assert "case 0 0" in done.stderr
