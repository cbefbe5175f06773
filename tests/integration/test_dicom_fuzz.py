"""Damaged and hostile DICOM files end in a rejection: no crash, no hang, no flood of memory."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("dicom_mutations.py")
NUM_CASES = 5_000


def run_worker(seed: int, num_cases: int, folder: Path | None) -> subprocess.CompletedProcess[str]:
    """Run the mutations in a process of their own, which may die without ending the tests."""
    arguments = [sys.executable, str(WORKER), str(seed), str(num_cases)]
    arguments += [str(folder)] if folder else []
    return subprocess.run(arguments, capture_output=True, text=True, timeout=800, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_mutated_files_neither_crash_nor_hang(seed: int) -> None:
    done = run_worker(seed, NUM_CASES, None)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{NUM_CASES} cases" in done.stdout
    assert "'read'" in done.stdout
    assert "'unreadable'" in done.stdout


@pytest.mark.slow
def test_mutated_real_files_neither_crash_nor_hang(shared_data: Path) -> None:
    done = run_worker(3, 2_000, shared_data / "radiographs" / "dicom")
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_error_other_than_a_rejection_fails_the_worker() -> None:
    broken = "import dicom_mutations as m; m.outcome = lambda content: 1 / 0; m.main(0, 1, None)"
    command = [sys.executable, "-c", broken]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=WORKER.parent, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "case 0 0" in done.stderr
