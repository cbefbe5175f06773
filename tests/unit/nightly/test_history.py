"""What past nights did: lost parts of the ledger are errors, roll-ups only repeat the plans."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings
from chexradinet.errors import ArtifactError
from chexradinet.nightly import history as module
from chexradinet.nightly.collect import collect
from chexradinet.nightly.history import History, note_try, read_history, roll_up
from chexradinet.nightly.ledger import open_ledger
from chexradinet.nightly.plan import plan
from chexradinet.nightly.score import score
from tests.nightly_world import SCORING, World, make_world

CONFIG = PlanConfig(
    settle_s=0.0, results=ResultSettings(quality=QualityConfig(check_inversion=False))
)
TODAY = datetime.now(UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def nights(world: World, num: int) -> History:
    """Run nights of one X-ray each; return what they left."""
    for number in range(num):
        world.add_png(number)
        world.run()
    return read_history(open_ledger(world.results_uri))


def folder(world: World, number: int) -> Path:
    """Return the folder of a plan."""
    return Path(world.results_uri) / "ledger" / "plans" / f"{number:06d}"


def days_ago(days: int) -> str:
    """Return a day before today."""
    return (TODAY - timedelta(days=days)).date().isoformat()


def test_shards_whose_plan_was_deleted_are_an_error_that_says_what_to_restore(
    world: World,
) -> None:
    nights(world, 1)
    for name in ("plan.json", "complete.json", "index.parquet"):
        (folder(world, 1) / name).unlink()
    world.add_png(5)
    with pytest.raises(ArtifactError, match=r"plans/000001/plan\.json is missing.*bring the whole"):
        world.run()
    assert not (folder(world, 1) / "plan.json").exists()


def test_a_plan_that_is_gone_between_others_is_an_error(world: World) -> None:
    nights(world, 2)
    shutil.rmtree(folder(world, 1))
    with pytest.raises(ArtifactError, match=r"plans/000001/plan\.json is missing"):
        world.run()


def test_a_complete_plan_without_its_index_is_an_error(world: World) -> None:
    nights(world, 1)
    (folder(world, 1) / "index.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"000001/index\.parquet is missing"):
        world.run()


def test_shards_of_another_plan_of_the_same_number_do_not_count_as_scored(world: World) -> None:
    nights(world, 1)
    shards = folder(world, 1) / "shards"
    kept = world.root / "kept"
    shutil.move(shards, kept)
    shutil.rmtree(Path(world.results_uri))
    world.add_png(7)
    plan(world.addresses, CONFIG)
    shutil.move(kept, shards)
    for stage in (
        lambda: score(world.addresses, 1, 0, SCORING),
        lambda: collect(world.addresses, 1),
        lambda: world.run(),
    ):
        with pytest.raises(ArtifactError, match=r"00000\.zip holds results of another plan 1"):
            stage()
    shutil.rmtree(shards)
    world.run()
    assert sorted(world.scored_keys()) == ["x0000.png", "x0007.png"]


MALFORMED = [b"", b"[]", b"null", b"{", b"\xff\x00", b'"text"', b"{}"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        *(("plan.json", data, None) for data in MALFORMED),
        *(("complete.json", data, None) for data in MALFORMED),
        ("plan.json", "images", 5),
        ("plan.json", "images", {"key": ["a"]}),
        ("plan.json", "shard_size", "x"),
        ("plan.json", "shard_size", 0),
        ("plan.json", "planned_at", "yesterday"),
        ("complete.json", "newest_arrival", None),
        ("complete.json", "number", "first"),
    ],
)
def test_a_malformed_document_is_one_error_that_names_it(
    world: World, name: str, field: str | bytes, value: object
) -> None:
    world.add_png(0)
    if name == "complete.json":
        world.run()
    else:
        plan(world.addresses, CONFIG)
    ledger = open_ledger(world.results_uri)
    key = ledger.plan_key(1, name)
    if isinstance(field, str):
        field = json.dumps(json.loads(ledger.store.get(key)) | {field: value}).encode()
    ledger.store.put(key, field)
    with pytest.raises(ArtifactError, match=rf"plans/000001/{name} is ") as raised:
        world.run()
    assert re.search("restore it|use the release", str(raised.value))


def test_roll_ups_give_what_the_plans_give_and_are_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLANS_PER_ROLLUP", 2)
    history = nights(world, 5)
    assert sorted(history.rollups) == [1, 3]
    rollups = Path(world.results_uri) / "ledger" / "rollups"
    with_them = _rows(history)
    before = {path.name: path.read_bytes() for path in rollups.iterdir()}
    (rollups / "000001.parquet").write_bytes(b"damaged")
    (rollups / "000003.json").unlink()
    without = read_history(open_ledger(world.results_uri))
    assert _rows(without) == with_them
    assert without.heads == history.heads
    assert roll_up(without)
    assert {path.name: path.read_bytes() for path in rollups.iterdir()} == before
    assert world.run()[0].status == "nothing_new"
    assert len(world.scored_keys()) == 5


def test_a_later_copy_of_a_rolled_up_x_ray_is_a_duplicate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLANS_PER_ROLLUP", 2)
    nights(world, 5)
    shutil.copyfile(world.inbox / "x0001.png", world.inbox / "copy.png")
    _, night = world.run()
    assert night is not None
    assert night.excluded == {"duplicate": {"duplicate": 1}}
    assert world.table("rejected-")[-1]["detail"] == "scored in plan 2"


def _rows(history: History) -> list[dict[str, object]]:
    rows = [row for index in history.indexes(history.heads) for row in index.to_pylist()]
    return sorted(rows, key=lambda row: str(row["key"]))


def test_a_plan_that_fails_three_nights_does_not_keep_later_ones_from_being_scored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_png(0)
    plan(world.addresses, CONFIG)
    ledger = open_ledger(world.results_uri)
    for days in (3, 2):
        note_try(ledger, 1, days_ago(days))
    assert read_history(ledger).set_aside(days_ago(0)) == ()
    note_try(ledger, 1, days_ago(0))
    assert read_history(ledger).set_aside(days_ago(0)) == (), "today is not over"
    note_try(ledger, 1, days_ago(1))
    world.add_png(1)
    outcome, night = world.run()
    assert night is not None
    assert (outcome.set_aside, outcome.work, night.num_scored) == ((1,), "2:1", 1)
    assert "set aside after 3 nights" in outcome.as_text()
    assert world.scored_keys() == ["x0001.png"]
    page = next(data for name, data in world.results().items() if name.endswith("worklist.html"))
    assert b"plan set aside" in page
    shutil.rmtree(folder(world, 1) / "tries")
    shutil.copyfile(world.inbox / "x0001.png", world.inbox / "x0002.png")
    outcome, _ = world.run()
    assert outcome.work == "1:1,3:1"
    assert sorted(world.scored_keys()) == ["x0000.png", "x0001.png"]
    before = world.results()
    collect(world.addresses, 2)
    collect(world.addresses, 1)
    assert world.results() == before
