"""The worklist over several nights: each study is listed once more before it reaches the cap."""

import io
import json
import os
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings, WorklistConfig
from chexradinet.nightly.ledger import open_ledger
from chexradinet.nightly.plan import plan
from tests.nightly_world import FINDINGS, World, calibration, make_world

FIRST = datetime(2026, 3, 1, 20, tzinfo=UTC)
CAPPED = ResultSettings(
    quality=QualityConfig(check_inversion=False), worklist=WorklistConfig(max_wait_h=72.0)
)


class Nights:
    """A world whose store tells the time that a test wants."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.now = FIRST
        monkeypatch.setattr("chexradinet.nightly.plan.store_time", lambda _: self.now)

    def arrive(self, number: int) -> str:
        """Let an X-ray arrive an hour before; return its study."""
        path = self.world.add_dicom(number)
        arrived = (self.now - timedelta(hours=1)).timestamp()
        os.utime(path, (arrived, arrived))
        return f"1.2.3.5.{number}"

    def run(self) -> list[tuple[str, str]]:
        """Run a night; return study and reason of the day's list."""
        self.world.run(results=CAPPED)
        for path in Path(self.world.results_uri).glob("ledger/plans/*/complete.json"):
            if path.stat().st_mtime > self.now.timestamp():
                os.utime(path, (self.now.timestamp(), self.now.timestamp()))
        rows = self.world.rows("worklist")
        return [(row[1], row[2]) for row in rows]

    def next_day(self, days: int = 1) -> None:
        """Let days pass."""
        self.now += timedelta(days=days)


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    return Nights(make_world(tmp_path), monkeypatch)


def test_a_study_is_listed_when_it_is_new_and_once_more_before_the_cap(nights: Nights) -> None:
    studies, lists = [], []
    for number in range(6):
        studies.append(nights.arrive(number))
        lists.append(nights.run())
        nights.next_day()
    assert lists[0] == [(studies[0], "priority")]
    assert lists[1] == [(studies[1], "priority")]
    # Arrived on the 1st at 19:00, due on the 4th; the list of the 3rd is the last one before.
    assert lists[2] == [(studies[0], "due"), (studies[2], "priority")]
    assert lists[3] == [(studies[1], "due"), (studies[3], "priority")]
    assert lists[5] == [(studies[3], "due"), (studies[5], "priority")]


def test_what_came_due_while_no_night_was_scored_is_on_the_next_list(nights: Nights) -> None:
    first = nights.arrive(0)
    nights.run()
    nights.next_day(9)
    second = nights.arrive(1)
    assert nights.run() == [(first, "due"), (second, "priority")]
    nights.next_day()
    third = nights.arrive(2)
    assert nights.run() == [(third, "priority")]


def test_a_night_that_is_finished_a_day_late_is_on_the_list_that_is_read(nights: Nights) -> None:
    late = nights.arrive(0)
    plan(nights.world.addresses, PlanConfig(settle_s=0.0, results=CAPPED))
    nights.next_day()
    new = nights.arrive(1)
    assert sorted(study for study, _ in nights.run()) == [late, new]


def test_a_night_lists_its_own_x_rays_where_another_release_stored_those_before(
    nights: Nights,
) -> None:
    nights.arrive(0)
    nights.run()
    store = open_ledger(nights.world.results_uri).store
    key = "ledger/plans/000001/shards/00000.zip"
    stored = io.BytesIO(store.get(key))
    with zipfile.ZipFile(stored) as archive:
        head = json.loads(archive.read("shard.json"))
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        archive.writestr("shard.json", json.dumps(head | {"schema": head["schema"] - 1}))
    store.put(key, changed.getvalue())
    new = nights.arrive(1)
    assert nights.run() == [(new, "priority")]
    (page,) = Path(nights.world.results_uri).glob("scores/*/worklist.html")
    assert "X-rays of plan 1, stored by another release" in page.read_text("utf-8")


def test_a_second_run_of_the_same_night_changes_no_list(nights: Nights) -> None:
    nights.arrive(0)
    nights.run()
    before = nights.world.results()
    nights.run()
    assert nights.world.results() == before


def test_scores_that_are_no_probabilities_give_no_priority(nights: Nights) -> None:
    fitted = calibration()
    rare = fitted["findings"][FINDINGS[1]]
    rare |= {"status": "not_calibrated", "slope": 1.0, "intercept": 5.0, "threshold": None}
    nights.world.publish(calibration=fitted)
    nights.arrive(0)
    nights.run()
    (row,) = nights.world.table("worklist")
    assert row["top_finding"] != FINDINGS[1]
    part = {row["finding"]: row for row in nights.world.table("part-")}
    assert part[FINDINGS[1]]["probability"] == ""
    score = float(part[FINDINGS[1]]["raw_score"]) + 5.0
    assert score > 2.2 > max(float(part[name]["raw_score"]) for name in (FINDINGS[0], FINDINGS[2]))


@pytest.mark.parametrize("hours", [1e9, float("inf"), float("nan"), 0.0, -1.0])
def test_a_cap_that_is_no_time_is_refused_before_anything_is_planned(hours: float) -> None:
    with pytest.raises(ValueError, match="max_wait_h"):
        WorklistConfig(max_wait_h=hours)
