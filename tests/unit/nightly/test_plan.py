"""What is planned: what is new, settled and not done, and nothing else."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chexradinet.config.nightly import PlanConfig
from chexradinet.errors import (
    ArtifactError,
    ConfigError,
    MismatchError,
    SourceError,
    StoreAccessError,
    StoreNotFoundError,
)
from chexradinet.nightly.ledger import Plan, create_plan, open_ledger, read_plan
from chexradinet.nightly.plan import PlanOutcome, parts_of, place_of, plan
from tests.nightly_world import FINDINGS, World, calibration, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def planned(world: World, **settings: object) -> PlanOutcome:
    """Plan with no settling time unless told otherwise."""
    return plan(world.addresses, PlanConfig(**{"settle_s": 0.0, **settings}))  # type: ignore[arg-type]


def keys_of(world: World, number: int) -> list[str]:
    """Return the X-rays of a plan."""
    return [image.key for image in read_plan(open_ledger(world.results_uri), number).images]


def touch(path: Path, age_s: float) -> None:
    """Give a file an age; below 0 it is of the future."""
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_an_empty_inbox_is_nothing_new_and_no_failure(world: World) -> None:
    outcome = planned(world)
    assert (outcome.status, outcome.parts, outcome.work) == ("nothing_new", (), "")
    assert "nothing new" in outcome.as_text()


def test_an_inbox_that_is_no_folder_is_told_from_an_empty_one(world: World) -> None:
    world.inbox.rmdir()
    with pytest.raises(SourceError, match="is not a folder"):
        planned(world)


def test_without_a_published_model_it_says_what_to_run_first(world: World) -> None:
    (world.root / "models" / "champion.json").unlink()
    with pytest.raises(StoreNotFoundError, match="run the training pipeline first"):
        planned(world)


def test_the_inbox_is_cut_into_shards_in_order_of_keys(world: World) -> None:
    for name in ("b.png", "a/c.png", "a.png", ".hidden.png", "a/.partial/x.png"):
        world.add_png(0, name)
    outcome = planned(world, shard_size=2)
    assert (outcome.status, outcome.parts, outcome.num_images) == ("planned", ((1, 2),), 3)
    assert keys_of(world, 1) == ["a.png", "a/c.png", "b.png"]


def test_an_object_that_may_still_be_written_waits(world: World) -> None:
    touch(world.add_png(0, "old.png"), age_s=100)
    touch(world.add_png(1, "young.png"), age_s=10)
    outcome = planned(world, settle_s=60.0)
    assert (keys_of(world, 1), outcome.inbox.num_young) == (["old.png"], 1)


def test_an_object_of_the_far_future_is_planned_and_does_not_wait_for_its_time(
    world: World,
) -> None:
    touch(world.add_png(0, "future.png"), age_s=-10_000)
    assert planned(world, settle_s=60.0).num_images == 1


def test_of_too_many_the_ones_that_came_first_go_first(world: World) -> None:
    for age_s, name in ((300, "z.png"), (200, "a.png"), (100, "b.png")):
        touch(world.add_png(0, name), age_s)
    outcome = planned(world, max_images=2)
    assert (keys_of(world, 1), outcome.inbox.num_left) == (["a.png", "z.png"], 1)


def test_an_unfinished_plan_goes_on_and_late_files_get_a_plan_of_their_own(world: World) -> None:
    world.add_png(0)
    planned(world)
    assert planned(world).parts == ((1, 1),)
    assert planned(world).status == "continued"
    world.add_png(1)
    outcome = planned(world)
    assert (outcome.status, outcome.parts, outcome.work) == (
        "continued",
        ((1, 1), (2, 1)),
        "1:1,2:1",
    )
    assert (keys_of(world, 1), keys_of(world, 2)) == (["x0000.png"], ["x0001.png"])


def test_a_plan_keeps_its_settings_when_those_of_the_run_change(world: World) -> None:
    from chexradinet.config.nightly import ResultSettings, settings_of

    world.add_png(0)
    planned(world, results=ResultSettings(batch_size=3))
    planned(world, results=ResultSettings(batch_size=4))
    found = read_plan(open_ledger(world.results_uri), 1)
    assert settings_of(found.settings) == ResultSettings(batch_size=3)


def test_an_unfinished_plan_of_another_inbox_is_refused(world: World, tmp_path: Path) -> None:
    world.add_png(0)
    planned(world)
    other = make_world(tmp_path / "other")
    with pytest.raises(MismatchError, match="plan 1 is unfinished"):
        planned(World(other.root, world.results_uri))


def test_a_champion_with_a_changed_byte_makes_no_plan(world: World) -> None:
    world.add_png(0)
    weights = next((world.root / "models").glob("*/weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed"):
        planned(world)
    assert not list(Path(world.results_uri).glob("ledger/plans/*"))


def test_a_champion_that_is_not_calibrated_is_refused(world: World) -> None:
    world.publish(calibration=None)
    with pytest.raises(ArtifactError, match="not calibrated"):
        planned(world)


def test_a_champion_calibrated_for_other_findings_is_refused(world: World) -> None:
    world.publish(calibration=calibration(FINDINGS[:2]))
    with pytest.raises(MismatchError, match="its calibration holds"):
        planned(world)


def test_a_champion_of_another_preprocessing_is_refused(world: World) -> None:
    world.publish(preprocessing_digest="0" * 64)
    with pytest.raises(MismatchError, match="preprocessing 000000000000"):
        planned(world)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_results_that_cannot_be_written_are_named(world: World) -> None:
    folder = Path(world.results_uri)
    folder.mkdir(mode=0o500)
    with pytest.raises(StoreAccessError, match="allow this user to write"):
        planned(world)


def test_results_below_a_file_are_refused_before_anything_is_planned(world: World) -> None:
    from chexradinet.errors import StoreError

    world.add_png(0)
    Path(world.results_uri).write_text("a file", encoding="utf-8")
    with pytest.raises(StoreError, match="results"):
        planned(world)


def test_the_local_clock_plays_no_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_png(0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert planned(world).num_images == 1
    today = read_plan(open_ledger(world.results_uri), 1).planned_at
    assert abs(datetime.now(UTC) - today) < timedelta(hours=1)


def test_ten_thousand_files_of_one_folder_are_planned_once(world: World) -> None:
    for number in range(10_000):
        (world.inbox / f"{number:05d}.dcm").write_bytes(b"x")
    started = time.process_time()
    outcome = planned(world, shard_size=500)
    assert (outcome.num_images, outcome.num_shards) == (10_000, 20)
    assert planned(world, shard_size=500).parts == outcome.parts
    assert time.process_time() - started < 30


@pytest.mark.parametrize("text", ["1", "1:2,", "x:1", "1:2:3"])
def test_work_is_read_back_or_refused(text: str) -> None:
    if text == "1:2,":
        assert parts_of(text) == ((1, 2),)
    else:
        with pytest.raises(ConfigError, match="work is"):
            parts_of(text)


def test_positions_run_through_all_plans_of_the_work() -> None:
    assert [place_of("3:2,4:1", index) for index in range(3)] == [(3, 0), (3, 1), (4, 0)]
    with pytest.raises(ConfigError, match="no such shard"):
        place_of("3:2,4:1", 3)


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01"])
def test_rescoring_since_no_date_is_refused(since: str) -> None:
    with pytest.raises(ConfigError, match="2026-01-31"):
        PlanConfig(rescore_since=since)


def test_of_two_runs_that_plan_at_once_one_plan_comes_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chexradinet.nightly import plan as module

    world.add_png(0)
    real = create_plan
    raced: list[bool] = []

    def other_is_faster(ledger: object, made: Plan) -> bool:
        if not raced:
            raced.append(real(ledger, made))  # type: ignore[arg-type]
        return real(ledger, made)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "create_plan", other_is_faster)
    outcome = planned(world)
    assert (outcome.status, outcome.parts, raced) == ("continued", ((1, 1),), [True])
