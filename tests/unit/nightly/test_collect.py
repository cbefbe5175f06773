"""Collecting a plan: what counts once, what is written, and whole nights in many odd shapes."""

import io
import os
import shutil
import time
from pathlib import Path

import pytest

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings, Run
from chexradinet.errors import (
    ArtifactError,
    ChexRadiNetError,
    ConfigError,
    StoreNotFoundError,
)
from chexradinet.monitoring import NightlyTelemetry
from chexradinet.nightly import Addresses
from chexradinet.nightly import run as nightly_module
from chexradinet.nightly import score as scorer
from chexradinet.nightly.collect import collect
from chexradinet.nightly.ledger import holding, open_ledger, read_completion, this_process
from chexradinet.nightly.plan import plan
from chexradinet.nightly.run import collect_stage, plan_stage, score_stage
from chexradinet.nightly.score import score
from chexradinet.nightly.summary import oldest_unscored_age_s
from tests.nightly_world import FINDINGS, SCORING, World, make_world

NO_GATE = ResultSettings(quality=QualityConfig(check_inversion=False))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


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
    assert world.table("worklist") == []
    assert len(world.table("rejected-")) == 3
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
    assert world.scored_keys() == ["d0001.dcm", "x0000.png"]
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


def test_a_plan_is_not_complete_before_its_shards_and_the_plans_before_it(world: World) -> None:
    world.add_png(0)
    config = PlanConfig(settle_s=0.0, results=NO_GATE)
    plan(world.addresses, config)
    with pytest.raises(ArtifactError, match="shard 0 of plan 1 is not scored"):
        collect(world.addresses, 1)
    world.add_png(1)
    plan(world.addresses, config)
    score(world.addresses, 2, 0, SCORING)
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
    assert len(done["files"]) == 5


def test_stages_one_by_one_give_what_one_go_gives(world: World) -> None:
    for number in range(3):
        world.add_png(number)
    world.run(shard_size=2)
    apart, run = world.with_results("apart"), Run(run_id="r")
    config = PlanConfig(settle_s=0.0, shard_size=2, results=NO_GATE)
    outcome = plan_stage(apart.addresses, config, run)
    assert plan_stage(apart.addresses, config, Run(run_id="s")).status == "another_run_active"
    for index in reversed(range(outcome.num_shards)):
        score_stage(apart.addresses, outcome.work, index, SCORING, run)
    collect_stage(apart.addresses, outcome.work, run)
    assert apart.results() == world.results()
    assert plan_stage(apart.addresses, config, Run(run_id="s")).status == "nothing_new"


def test_telemetry_tells_success_and_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[NightlyTelemetry] = []
    monkeypatch.setattr(nightly_module, "push", pushed.append)
    monkeypatch.setattr("chexradinet.nightly.run.push", pushed.append)
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


def test_figures_of_a_run_are_those_of_all_its_plans(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[NightlyTelemetry] = []
    monkeypatch.setattr(nightly_module, "push", pushed.append)
    world.add_png(0)
    world.add_png(1)
    plan_stage(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE), Run(run_id="test"))
    (world.inbox / "c.txt").write_text("x", encoding="utf-8")
    world.add_png(2)
    (world.root / "results" / "ledger" / "lease.json").unlink()
    _, night = world.run()
    assert night is not None
    assert (night.num_planned, night.num_scored) == (4, 3)
    assert night.excluded == {"rejected": {"not_an_image": 1}}
    assert pushed[-1].images_scored == 3
    assert sum(pushed[-1].flagged.values()) == sum(
        row["flagged"] == "true" for row in world.table("part-")
    )


def test_a_failure_of_any_kind_is_pushed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[NightlyTelemetry] = []
    monkeypatch.setattr(nightly_module, "push", pushed.append)
    monkeypatch.setattr(scorer, "open_scorer", lambda *_: 1 / 0)
    world.add_png(0)
    with pytest.raises(ZeroDivisionError):
        world.run()
    assert [told.success for told in pushed] == [False]


def test_a_second_run_in_one_go_leaves_while_the_first_is_at_work(world: World) -> None:
    world.add_png(0)
    ledger = open_ledger(world.results_uri)
    with holding(ledger, this_process("other")) as ours:
        assert ours
        outcome, night = world.run()
    assert (outcome.status, night) == ("another_run_active", None)
    assert world.results() == {}


def test_the_oldest_x_ray_that_waits_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = world.add_png(0)
    os.utime(waited, (time.time() - 7200, time.time() - 7200))
    assert 7200 <= oldest_unscored_age_s(world.addresses) < 7300
    world.run()
    assert oldest_unscored_age_s(world.addresses) == 0.0


@pytest.mark.parametrize("results", ["inbox", "inbox/results", "."])
def test_results_where_x_rays_arrive_are_refused(world: World, results: str) -> None:
    with pytest.raises(ConfigError, match="results_uri"):
        Addresses(
            inbox_uri=str(world.inbox),
            models_uri=str(world.root / "models"),
            results_uri=str(world.root / results),
        )


def test_a_model_that_is_gone_is_named_with_the_plan_that_needs_it(world: World) -> None:
    world.add_png(0)
    plan_stage(world.addresses, PlanConfig(settle_s=0.0, results=NO_GATE), Run(run_id="r"))
    old = next((world.root / "models").glob("*/bundle.json")).parent
    world.publish(seed=5)
    shutil.rmtree(old)
    (world.root / "results" / "ledger" / "lease.json").unlink()
    with pytest.raises(StoreNotFoundError, match=rf"plan 1 .* model {old.name[:12]}.*bring it"):
        world.run()
