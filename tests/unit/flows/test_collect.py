"""Collecting a plan: what counts once, what is written, and whole nights in many odd shapes."""

import csv
import io
import json
import os
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import PreprocessingConfig, QualityConfig
from chexradinet.dataset.geometry import fit_to_model
from chexradinet.dataset.phantom import draw_phantom
from chexradinet.errors import ArtifactError, ChexRadiNetError
from chexradinet.flows import nightly as nightly_module
from chexradinet.flows.collect import collect
from chexradinet.flows.ledger import open_ledger, read_completion
from chexradinet.flows.nightly import collect_stage, plan_stage, score_stage
from chexradinet.flows.nightly_settings import PlanConfig, ResultSettings, Run, ScoreConfig
from chexradinet.flows.plan import plan
from chexradinet.flows.report_outcome import report_outcome
from chexradinet.flows.score import score
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.results.calibration import apply_calibration
from chexradinet.results.reference import Population, build_reference
from chexradinet.results.telemetry import NightlyTelemetry
from tests.nightly_world import FINDINGS, SIDE_PX, World, calibration, make_world

NO_GATE = ResultSettings(quality=QualityConfig(check_inversion=False))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def table(world: World, prefix: str) -> list[dict[str, str]]:
    """Return the rows of all CSV files of a kind, of all nights."""
    rows: list[dict[str, str]] = []
    for name, data in sorted(world.results().items()):
        if f"/{prefix}" in name and name.endswith(".csv"):
            rows += csv.DictReader(io.StringIO(data.decode()))
    return rows


def scored_keys(world: World) -> list[str]:
    """Return the object keys of all score rows of one finding."""
    return [row["object_key"] for row in table(world, "part-") if row["finding"] == FINDINGS[0]]


def test_an_empty_inbox_is_a_success_that_says_so(world: World) -> None:
    outcome, night = world.run()
    assert (outcome.status, night) == ("nothing_new", None)
    assert world.results() == {}


def test_an_inbox_of_rejects_alone_is_a_night_with_reasons_and_an_empty_worklist(
    world: World,
) -> None:
    for number in range(3):
        (world.inbox / f"{number}.dcm").write_bytes(b"junk" * number)
    _, night = world.run()
    assert night is not None
    assert (night.num_scored, night.num_planned) == (0, 3)
    assert night.excluded["rejected"] == {"truncated": 1, "not_an_image": 2}
    assert table(world, "worklist") == []
    assert len(table(world, "rejected-")) == 3
    assert world.run()[0].status == "nothing_new"


def test_a_night_leaves_all_files_and_the_next_has_nothing_to_do(world: World) -> None:
    world.add_png(0)
    world.add_dicom(1)
    _, night = world.run()
    assert night is not None
    names = {name.rpartition("/")[2] for name in world.results()}
    assert names == {
        "part-000001.parquet", "part-000001.csv", "rejected-000001.csv", "drift-000001.json",
        "report-000001.html", "report.html", "worklist.csv", "worklist.html",
    }  # fmt: skip
    assert scored_keys(world) == ["d0001.dcm", "x0000.png"]
    before = world.results()
    assert world.run()[0].status == "nothing_new"
    assert world.results() == before


def test_csv_and_parquet_hold_the_same(world: World) -> None:
    import pandas as pd

    for number in range(4):
        world.add_png(number)
    world.run()
    found = world.results()
    name = next(name for name in found if name.endswith("part-000001.csv"))
    plain = pd.read_csv(io.BytesIO(found[name]), na_values=[""], float_precision="round_trip")
    whole = pd.read_parquet(io.BytesIO(found[name.replace(".csv", ".parquet")]))
    assert plain.columns.tolist() == whole.columns.tolist()
    assert plain["probability"].tolist() == whole["probability"].tolist()
    assert plain["flagged"].astype(bool).tolist() == whole["flagged"].tolist()


def test_late_files_are_scored_the_next_time_and_only_they(world: World) -> None:
    world.add_png(0)
    world.run()
    world.add_png(1)
    outcome, night = world.run()
    assert night is not None
    assert (outcome.status, night.num_scored) == ("planned", 1)
    assert scored_keys(world) == ["x0000.png", "x0001.png"]
    assert len(table(world, "worklist")) == 2  # the list is the whole night's


def test_a_file_that_changed_is_scored_once_with_what_it_became(world: World) -> None:
    world.add_dicom(0, "a.dcm")
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    world.add_dicom(1, "a.dcm")
    _, night = world.run()  # goes on with the first plan, and plans what the file became
    assert night is not None
    world.run()
    assert [row["sop_uid"] for row in table(world, "part-")] == ["1.2.3.4.1"] * 3
    assert [row["reason"] for row in table(world, "rejected-")] == ["changed"]


def test_a_file_that_vanished_and_came_back_is_scored(world: World) -> None:
    path = world.add_png(0)
    kept = path.stat()
    data = path.read_bytes()
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    hidden = path.with_name(".hidden")
    path.rename(hidden)
    world.run()
    assert scored_keys(world) == []
    hidden.rename(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (data, kept.st_mtime_ns)
    world.run()
    assert scored_keys(world) == ["x0000.png"]


def test_the_same_x_ray_under_two_names_counts_once_under_the_smaller(world: World) -> None:
    world.add_dicom(0, "b.dcm")
    world.add_dicom(0, "z/a.dcm", {"Manufacturer": "sent twice"})
    world.add_dicom(1, "c.dcm")
    world.run(shard_size=1)
    assert scored_keys(world) == ["b.dcm", "c.dcm"]
    rejected = table(world, "rejected-")
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
    assert scored_keys(world) == ["b.dcm"]
    assert table(world, "rejected-")[0]["detail"] == "scored in plan 1"


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
    entries = table(world, "worklist")
    assert [(entry["study_uid"], entry["num_images"]) for entry in entries] == [("1.2.9", "2")]
    assert len(table(world, "part-")) == 2 * len(FINDINGS)


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
    assert len({row["model_digest"] for row in table(world, "part-")}) == 2
    assert len(table(world, "worklist")) == 1


def test_a_plan_is_finished_with_its_own_model_when_the_champion_changes(world: World) -> None:
    world.add_png(0)
    plan(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE))
    old = next((world.root / "models").glob("*/bundle.json")).parent.name
    world.publish(seed=5)
    world.run()
    assert {row["model_digest"] for row in table(world, "part-")} == {old}


def test_a_clock_that_was_put_back_loses_and_repeats_nothing(world: World) -> None:
    ahead = time.time() + 10 * 86_400
    os.utime(world.add_png(0), (ahead, ahead))
    world.run()
    world.add_png(1)
    world.run()
    assert sorted(scored_keys(world)) == ["x0000.png", "x0001.png"]
    assert world.run()[0].status == "nothing_new"


def test_a_plan_is_not_complete_before_its_shards_and_the_plans_before_it(world: World) -> None:
    world.add_png(0)
    config = PlanConfig(settle_s=0.0, results=NO_GATE)
    plan(world.addresses, config)
    with pytest.raises(ArtifactError, match="shard 0 of plan 1 is not scored"):
        collect(world.addresses, 1)
    world.add_png(1)
    plan(world.addresses, config)
    score(world.addresses, 2, 0, ScoreConfig(device="cpu", num_threads=1))
    with pytest.raises(ArtifactError, match="collect plan 1 first"):
        collect(world.addresses, 2)


def test_collecting_again_changes_nothing(world: World) -> None:
    world.add_png(0)
    world.run()
    before = world.results()
    again = collect(world.addresses, 1)
    assert again.num_scored == 1
    assert world.results() == before


def test_a_run_that_fell_behind_does_not_replace_a_later_worklist(world: World) -> None:
    world.add_png(0)
    world.run()
    world.add_png(1)
    world.run()
    before = world.results()
    collect(world.addresses, 1)
    assert world.results() == before


def test_completion_counts_what_became_of_every_object(world: World) -> None:
    world.add_dicom(0, "a.dcm")
    world.add_dicom(0, "b.dcm")
    (world.inbox / "c.txt").write_text("x", encoding="utf-8")
    world.run()
    done = read_completion(open_ledger(world.results_uri), 1)
    assert done is not None
    assert done["counts"] == {"duplicate": 1, "rejected": 1, "scored": 1}
    assert len(done["files"]) == 6


def test_a_model_without_reference_says_that_drift_is_not_measured(world: World) -> None:
    world.add_png(0)
    world.run()
    name = next(name for name in world.results() if name.endswith("drift-000001.json"))
    assert json.loads(world.results()[name])["status"] == "no_reference"
    page = next(data for name, data in world.results().items() if name.endswith("report.html"))
    assert b"drift cannot be measured" in page


def test_stages_one_by_one_give_what_one_go_gives(world: World) -> None:
    for number in range(3):
        world.add_png(number)
    world.run(shard_size=2)
    apart, run = world.with_results("apart"), Run(run_id="r")
    config = PlanConfig(settle_s=0.0, shard_size=2, results=NO_GATE)
    outcome = plan_stage(apart.addresses, config, run)
    assert plan_stage(apart.addresses, config, Run(run_id="s")).status == "another_run_active"
    for index in reversed(range(outcome.num_shards)):
        score_stage(apart.addresses, outcome.work, index, ScoreConfig(device="cpu"), run)
    collect_stage(apart.addresses, outcome.work, run)
    assert apart.results() == world.results()
    assert plan_stage(apart.addresses, config, Run(run_id="s")).status == "nothing_new"


def test_telemetry_tells_success_and_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[NightlyTelemetry] = []
    monkeypatch.setattr(nightly_module, "push", pushed.append)
    monkeypatch.setattr("chexradinet.flows.report_outcome.push", pushed.append)
    world.add_png(0)
    (world.inbox / "c.txt").write_text("x", encoding="utf-8")
    world.run()
    night = pushed[-1]
    assert (night.success, night.images_scored, night.oldest_unscored_age_seconds) == (True, 1, 0.0)
    assert dict(night.rejected or {}) == {"not_an_image": 1}
    assert set(night.flagged) == set(FINDINGS)
    assert set(night.stage_seconds) == {"plan", "score", "collect"}
    (world.root / "models" / "champion.json").write_text("{}", encoding="utf-8")
    world.add_png(1)
    with pytest.raises(ChexRadiNetError):
        world.run()
    assert pushed[-1].success is False
    assert report_outcome(world.results_uri, "SUCCEEDED", "r")
    assert not report_outcome(world.results_uri, "FAILED", "r")
    assert [found.success for found in pushed[-2:]] == [True, False]


def test_a_model_with_a_reference_measures_drift_and_distribution(world: World) -> None:
    _publish_with_reference(world)
    for number in range(24):
        world.add_dicom(number)
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.ood_fraction is not None
    assert night.ood_fraction < 0.5
    assert night.drift is not None
    assert night.drift["status"] == "ok"
    assert {"score:Mass", "image:mean", "metadata:view", "embedding"} <= set(
        night.drift["comparisons"]
    )
    rows = table(world, "part-")
    assert {row["out_of_distribution"] for row in rows} <= {"true", "false"}
    assert all(float(row["out_of_distribution_score"]) > 0 for row in rows)


def test_inverted_x_rays_are_seen_as_drift_and_as_unlike_the_training_data(world: World) -> None:
    _publish_with_reference(world)
    for number in range(24):
        world.add_dicom(number, header={"PhotometricInterpretation": "MONOCHROME1"})
    _, night = world.run(shard_size=24)
    assert night is not None
    assert night.drift is not None
    assert night.drift["alarm"]
    assert {"embedding", "ood"} <= set(night.drift["alarms"])
    assert (night.ood_fraction or 0.0) > 0.5


def _publish_with_reference(world: World) -> None:
    """Publish a model whose reference was made of 200 other X-rays of the same kind."""
    digest = next((world.root / "models").glob("*/bundle.json")).parent
    network = load_bundle(digest).network
    preprocessing = PreprocessingConfig(image_side=SIDE_PX)
    pixels = np.stack(
        [
            fit_to_model(draw_phantom(n, 96, 3, 0.0).pixels, preprocessing)[0]
            for n in range(100, 300)
        ]
    ).astype(np.uint8)
    found = predict(network, lambda rows: pixels[rows], np.arange(200), device="cpu", maps=False)
    reference = build_reference(
        Population(
            findings=FINDINGS,
            probabilities=apply_calibration(calibration(), FINDINGS, found.logits),
            embeddings=found.embedding,
            patient_ids=list(range(200)),
            metadata={"view": ["PA"] * 200},
            image_statistics={"mean": pixels.mean((1, 2)), "std": pixels.std((1, 2))},
        )
    )
    world.publish(reference=reference)
