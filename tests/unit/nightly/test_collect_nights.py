"""Nights in many odd shapes: late, changing, double and vanishing files, and new models."""

import os
import time
from datetime import date
from pathlib import Path

import pytest

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings
from chexradinet.nightly.plan import plan
from tests.nightly_world import FINDINGS, World, make_world

NO_GATE = ResultSettings(quality=QualityConfig(check_inversion=False))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def test_late_files_are_scored_the_next_time_and_only_they(world: World) -> None:
    world.add_png(0)
    world.run()
    world.add_png(1)
    outcome, night = world.run()
    assert night is not None
    assert (outcome.status, night.num_scored) == ("planned", 1)
    assert world.scored_keys() == ["x0000.png", "x0001.png"]
    assert len(world.table("worklist")) == 2  # the list is the whole night's


def test_a_file_that_changed_is_scored_once_with_what_it_became(world: World) -> None:
    world.add_dicom(0, "a.dcm")
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    world.add_dicom(1, "a.dcm")
    _, night = world.run()  # continues with the first plan, and plans what the file became
    assert night is not None
    world.run()
    assert [row["sop_uid"] for row in world.table("part-")] == ["1.2.3.4.1"] * 3
    assert [row["reason"] for row in world.table("rejected-")] == ["changed"]


def test_an_object_that_is_written_again_after_it_was_scored_is_counted(world: World) -> None:
    world.add_dicom(7, "stays.dcm")
    for number in range(2):
        world.add_dicom(number, "a.dcm")
        outcome, _ = world.run()
        assert outcome.inbox.num_replaced == number
    assert "; 1 objects were written again since they were scored" in outcome.as_text()
    assert world.run()[0].inbox.num_replaced == 0


def test_a_file_that_vanished_and_came_back_is_scored(world: World) -> None:
    path = world.add_png(0)
    kept = path.stat()
    data = path.read_bytes()
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    hidden = path.with_name(".hidden")
    path.rename(hidden)
    world.run()
    assert world.scored_keys() == []
    hidden.rename(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (data, kept.st_mtime_ns)
    world.run()
    assert world.scored_keys() == ["x0000.png"]


def test_the_same_x_ray_under_two_names_counts_once_under_the_smaller(world: World) -> None:
    world.add_dicom(0, "b.dcm")
    world.add_dicom(0, "z/a.dcm", {"Manufacturer": "sent twice"})
    world.add_dicom(1, "c.dcm")
    world.run(shard_size=1)
    assert world.scored_keys() == ["b.dcm", "c.dcm"]
    rejected = world.table("rejected-")
    assert [(row["object_key"], row["detail"]) for row in rejected] == [
        ("z/a.dcm", "same X-ray as b.dcm")
    ]


def test_an_x_ray_of_an_earlier_night_under_another_name_counts_no_more(world: World) -> None:
    world.add_dicom(0, "b.dcm")
    world.run()
    world.add_dicom(0, "a.dcm")
    _, night = world.run()
    assert night is not None
    assert (night.num_scored, night.excluded) == (0, {"duplicate": {"duplicate": 1}})
    assert world.scored_keys() == ["b.dcm"]
    assert world.table("rejected-")[0]["detail"] == "scored in plan 1"


def test_dicom_results_of_a_duplicate_are_taken_away(world: World) -> None:
    world.add_dicom(0, "a.dcm")
    world.add_dicom(0, "b.dcm")
    settings = ResultSettings(quality=QualityConfig(check_inversion=False), dicom_results=True)
    world.run(results=settings, shard_size=1)
    files = [name for name in world.results() if name.startswith("dicom/")]
    assert len(files) == 2
    assert len({name.rpartition("/")[0] for name in files}) == 1


def test_a_study_with_two_frontal_images_is_one_entry_of_the_worklist(world: World) -> None:
    for number in (0, 1):
        world.add_dicom(number, header={"StudyInstanceUID": "1.2.9"})
    world.run()
    entries = world.table("worklist")
    assert [(entry["study_uid"], entry["num_images"]) for entry in entries] == [("1.2.9", "2")]
    assert len(world.table("part-")) == 2 * len(FINDINGS)


def test_a_new_champion_scores_what_is_new_and_the_rest_only_on_demand(world: World) -> None:
    world.add_png(0)
    world.run()
    digest = world.publish(seed=5)
    assert world.run()[0].status == "nothing_new"
    assert world.run(rescore_since="2999-01-01")[0].status == "nothing_new"
    _, night = world.run(rescore_since=date(2020, 1, 1).isoformat())
    assert night is not None
    assert (night.num_scored, night.model_digest) == (1, digest)
    assert world.run(rescore_since="2020-01-01")[0].status == "nothing_new"
    assert len({row["model_digest"] for row in world.table("part-")}) == 2
    assert len(world.table("worklist")) == 1


def test_a_plan_is_finished_with_its_own_model_when_the_champion_changes(world: World) -> None:
    world.add_png(0)
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    old = next((world.root / "models").glob("*/bundle.json")).parent.name
    world.publish(seed=5)
    world.run()
    assert {row["model_digest"] for row in world.table("part-")} == {old}


def test_a_clock_that_was_put_back_loses_and_repeats_nothing(world: World) -> None:
    ahead = time.time() + 10 * 86_400
    os.utime(world.add_png(0), (ahead, ahead))
    world.run()
    world.add_png(1)
    world.run()
    assert sorted(world.scored_keys()) == ["x0000.png", "x0001.png"]
    assert world.run()[0].status == "nothing_new"
