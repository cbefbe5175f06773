"""The pool of processes: order, death of a process, interruption."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from chexradinet.errors import ConfigError
from chexradinet.parallel import ITEMS_AHEAD
from chexradinet.records import FeatureStatus
from chexradinet.regions import FeatureRow
from chexradinet.regions.radiomics import BATCH_SIZE, Crop, measure_in_processes

MEASURE = partial(FeatureRow, FeatureStatus.OK)
"""Gives each crop back as if it were its features: what counts here is which come back, and how."""

SCRIPT = """
import sys, time
import numpy as np
from chexradinet.records import FeatureStatus
from chexradinet.regions import rejected_row
from chexradinet.regions.radiomics import measure_in_processes

def measure(crop):
    time.sleep(0.02)
    return rejected_row(FeatureStatus.FAILED)

def main():
    crops = (np.zeros((4, 4), np.uint8) for _ in range(100_000))
    for row in measure_in_processes(crops, measure, 2):
        sys.stdout.write(row.status.value + "\\n")
        sys.stdout.flush()
"""


class Deadly:
    """A stand-in for a crop that ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (9,)


def crops(count: int) -> list[Crop | None]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (4, 6), np.uint8) for _ in range(count)]


def test_pool_gives_the_rows_of_one_process_in_the_same_order() -> None:
    given = crops(BATCH_SIZE + 7)
    given[3] = None
    alone = list(measure_in_processes(given, MEASURE, 1))
    pooled = list(measure_in_processes(given, MEASURE, 2))
    assert len(pooled) == len(given)
    assert [row.status for row in pooled] == [row.status for row in alone]
    assert alone[3].status == FeatureStatus.NO_REGION
    np.testing.assert_array_equal(alone[BATCH_SIZE].values, given[BATCH_SIZE])
    for one, other in zip(alone, pooled, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.slow
def test_crop_that_kills_its_process_fails_alone() -> None:
    given = crops(BATCH_SIZE + 3)
    given[5] = cast("Crop", Deadly())
    rows = list(measure_in_processes(given, MEASURE, 2))
    assert [number for number, row in enumerate(rows) if row.status != FeatureStatus.OK] == [5]
    assert rows[5].status == FeatureStatus.FAILED
    assert np.isnan(rows[5].values).all()
    np.testing.assert_array_equal(rows[-1].values, given[-1])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_crop_gives_no_row(num_workers: int) -> None:
    assert list(measure_in_processes([], MEASURE, num_workers)) == []


def test_number_of_processes_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_workers"):
        list(measure_in_processes([], MEASURE, 0))


def test_crops_are_read_only_a_little_ahead() -> None:
    taken = 0

    def source() -> Iterator[Crop]:
        nonlocal taken
        for _ in range(20 * BATCH_SIZE):
            taken += 1
            yield np.zeros((0, 0), np.uint8)

    rows = measure_in_processes(source(), MEASURE, 2)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert taken <= 2 * ITEMS_AHEAD


def started(folder: Path, ending: str) -> "subprocess.Popen[str]":
    script = folder / "measure_many.py"
    script.write_text(SCRIPT + ending)
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_interrupt_ends_all_processes(tmp_path: Path) -> None:
    process = started(tmp_path, 'if __name__ == "__main__":\n    main()\n')
    assert process.stdout is not None
    assert process.stdout.readline() == "failed\n"
    errors = interrupted(process)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 120
    while group_lives(process.pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def interrupted(process: "subprocess.Popen[str]") -> str:
    """Press Ctrl-C until the process ends, and return what it says.

    Once is not always enough: Python drops an interrupt that comes while a finaliser runs.
    """
    for _ in range(6):
        os.killpg(process.pid, signal.SIGINT)
        try:
            return process.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.communicate()[1]


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_script_without_a_main_guard_is_told_so_and_no_region_is_blamed(tmp_path: Path) -> None:
    process = started(tmp_path, "main()\n")
    output, errors = process.communicate(timeout=60)
    assert output == ""
    assert "WorkerError: worker processes end before they do anything" in errors
