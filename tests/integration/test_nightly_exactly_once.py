"""Each X-ray once, whatever kills a run and whoever else is running."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import ResultSettings
from chexradinet.nightly.ledger import open_ledger, read_completion
from chexradinet.store.local import LocalStore
from tests.nightly_world import World, fork, make_world

NUM_POINTS = 20
_WRITES = ("put", "create", "put_file", "delete")
SETTINGS = ResultSettings(
    quality=QualityConfig(check_inversion=False), report_cases=3, dicom_results=True
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return 23 PNG and 1 DICOM X-ray, that one twice, and a file that is none."""
    made = make_world(tmp_path_factory.mktemp("night"), num_png=23, num_dicom=1)
    made.add_dicom(23, name="again.dcm")
    (made.inbox / "notes.txt").write_text("no X-ray", encoding="utf-8")
    # Once before forking, with one thread: what it loads and prepares each child would do again.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made.with_results("warm").run(results=SETTINGS)
    yield made
    torch.set_num_threads(before)


def in_child(work: Callable[[], object]) -> int:
    """Do something in a forked process; return its wait status."""
    child = fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        time.sleep(0.2)  # a server that the child was asking for a worker ends in moments
    return status


def count_writes(world: World, target: Path) -> None:
    """Run a whole night, and write down how many writes it took."""
    counted = _count_each_write(lambda _number, _after: None)
    world.run(results=SETTINGS)
    target.write_text(str(counted[0]), encoding="utf-8")


def _count_each_write(do: Callable[[int, bool], None]) -> list[int]:
    """Call a function before and after each write to a store; return the running number."""
    counted = [0]

    def wrap(name: str) -> None:
        original = getattr(LocalStore, name)

        def counting(*arguments: object, **options: object) -> object:
            counted[0] += 1
            number = counted[0]
            do(number, False)
            result = original(*arguments, **options)
            do(number, True)
            return result

        setattr(LocalStore, name, counting)

    for name in _WRITES:
        wrap(name)
    return counted


def killed_at_write(world: World, number: int, after: bool) -> None:
    """Run a night that is killed just before or just after one of its writes."""

    def kill(at: int, is_after: bool) -> None:
        if (at, is_after) == (number, after):
            os.kill(os.getpid(), signal.SIGKILL)

    _count_each_write(kill)
    world.run(results=SETTINGS)


def scores_digest(world: World) -> str:
    """Return the digest that a plan's completion gives of its scores."""
    completion = read_completion(open_ledger(world.results_uri), 1)
    assert completion is not None
    return str(completion["scores_sha256"])


def killed_after(world: World, seconds: float) -> None:
    """Run a night that is killed at some time, wherever it is then."""

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    world.run(results=SETTINGS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_of_twenty_points_and_run_again_gives_the_bytes_of_a_clean_run(
    world: World, tmp_path: Path
) -> None:
    clean = world.with_results("clean")
    started = time.monotonic()
    assert in_child(lambda: count_writes(clean, tmp_path / "count")) == 0
    took_s = time.monotonic() - started
    num_writes = int((tmp_path / "count").read_text("utf-8"))
    expected = clean.results()
    assert len([name for name in expected if name.startswith("dicom/")]) == 2
    assert len(clean.rows("part-")) == 24 * 3
    draw = random.Random(20260215)
    num_killed = 0
    for point in range(NUM_POINTS):
        torn = world.with_results(f"torn-{point}")
        if point % 4 == 3:
            seconds = draw.uniform(0.0, took_s)
            status = in_child(lambda s=seconds, w=torn: killed_after(w, s))  # type: ignore[misc]
        else:
            number, after = draw.randint(1, num_writes), draw.random() < 0.5
            status = in_child(
                lambda n=number, a=after, w=torn: killed_at_write(w, n, a)  # type: ignore[misc]
            )
        num_killed += os.WIFSIGNALED(status)
        assert in_child(lambda w=torn: w.run(results=SETTINGS)) == 0  # type: ignore[misc]
        assert torn.results() == expected, f"point {point}"
        assert scores_digest(torn) == scores_digest(clean), f"point {point}"
    assert num_killed >= NUM_POINTS * 3 // 4


def test_two_runs_at_once_score_each_x_ray_once(world: World) -> None:
    both = world.with_results("both")
    first = fork()
    if first == 0:
        try:
            torch.set_num_threads(1)
            both.run(results=SETTINGS)
        finally:
            os._exit(0)
    statuses = [in_child(lambda: both.run(results=SETTINGS)) for _ in range(2)]
    os.waitpid(first, 0)
    assert statuses == [0, 0]
    assert in_child(lambda: both.run(results=SETTINGS)) == 0
    rows = both.rows("part-")
    assert len(rows) == 24 * 3
    assert len({(row[0], row[4]) for row in rows}) == 24 * 3
