"""Scoring a shard: what is read, what is refused, what the rows say."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexradinet.config import Precision, QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings
from chexradinet.errors import (
    ArtifactError,
    ConfigError,
    MismatchError,
    RejectedImageError,
    StoreUnavailableError,
)
from chexradinet.evaluation.calibration import sigmoid
from chexradinet.model.bundle import load_bundle
from chexradinet.model.inference import predict
from chexradinet.nightly import TIMINGS, ShardResult, XRay
from chexradinet.nightly import read as nightly_read
from chexradinet.nightly.ledger import open_ledger, read_plan
from chexradinet.nightly.merge import read_shard
from chexradinet.nightly.model import num_measurers
from chexradinet.nightly.plan import plan
from chexradinet.nightly.score import score
from chexradinet.parallel import available_processors
from chexradinet.records import RejectReason
from chexradinet.store import open_store
from tests.nightly_world import FINDINGS, SCORING, World, decode_in_this_process, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def planned(world: World, **settings: object) -> None:
    """Plan all that is there."""
    results = ResultSettings(quality=QualityConfig(check_inversion=False), **settings)  # type: ignore[arg-type]
    plan(world.addresses, PlanConfig(settle_s=0.0, results=results))


def first_shard(world: World) -> ShardResult:
    """Return what the first shard of the first plan holds."""
    ledger = open_ledger(world.results_uri)
    result = read_shard(ledger, read_plan(ledger, 1), 0)
    assert result is not None
    return result


def scored(world: World) -> ShardResult:
    """Score the only shard of the first plan."""
    score(world.addresses, 1, 0, SCORING)
    return first_shard(world)


def scores(world: World) -> pd.DataFrame:
    """Return the scores of the only shard as a frame."""
    frame: pd.DataFrame = scored(world).scores.to_pandas()
    return frame


def test_a_shard_of_rejects_alone_has_results_without_rows(world: World) -> None:
    (world.inbox / "a.txt").write_text("no X-ray", encoding="utf-8")
    (world.inbox / "b.dcm").write_bytes(b"")
    planned(world)
    result = scored(world)
    assert (result.scores.num_rows, result.images.num_rows) == (0, 0)
    reasons = result.rejected.select(["object_key", "status", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in reasons] == [
        ("a.txt", "rejected", "not_an_image"),
        ("b.dcm", "rejected", "truncated"),
    ]


def test_a_row_says_what_the_network_says(world: World) -> None:
    world.add_png(0)
    planned(world)
    rows = scores(world)
    assert rows["finding"].tolist() == list(FINDINGS)
    bundle = load_bundle(next((world.root / "models").glob("*/bundle.json")).parent)
    reading = nightly_read.Reading(
        str(world.inbox), bundle.info.preprocessing,
        ResultSettings(quality=QualityConfig(check_inversion=False)), b"salt",
    )  # fmt: skip
    image = read_plan(open_ledger(world.results_uri), 1).images[0]
    xray = nightly_read.read_xray(reading, image)
    assert isinstance(xray, XRay)
    logits = predict(bundle.network, lambda _: xray.pixels[None], np.arange(1), device="cpu").logits
    np.testing.assert_allclose(rows["raw_score"], logits[0], atol=1e-5)
    np.testing.assert_allclose(rows["probability"], sigmoid(3.0 * logits[0]), atol=1e-5)
    flagged = rows["probability"] >= rows["threshold"]
    assert rows["flagged"].tolist() == flagged.tolist()
    assert (rows.loc[~flagged, "radiomics_status"] == "not_flagged").all()
    assert set(rows["model_digest"]) == {bundle.digest}


def test_float16_flags_what_float32_flags_and_the_shard_says_so(world: World) -> None:
    for number in range(6):
        world.add_png(number)
    planned(world)
    exact = scored(world)
    other = world.with_results("rough")
    planned(other)
    score(other.addresses, 1, 0, SCORING.changed(precision=Precision.FLOAT16))
    rough = first_shard(other)
    assert (exact.precision, rough.precision) == ("float32", "float16")
    both = [result.scores.to_pandas() for result in (exact, rough)]
    assert both[0]["flagged"].tolist() == both[1]["flagged"].tolist()
    assert 0 < (both[0]["probability"] - both[1]["probability"]).abs().max() < 0.002


def test_regions_are_in_original_pixels_and_in_millimetres_where_spacing_is_known(
    world: World,
) -> None:
    world.add_dicom(0)
    world.add_png(0)
    planned(world)
    rows = scores(world)
    dicom = rows[(rows["sop_uid"] == "1.2.3.4.0") & (rows["region_status"] == "ok")]
    png = rows[(rows["sop_uid"] == "") & (rows["region_status"] == "ok")]
    assert len(dicom) > 0
    # Row spacing 0.5 mm, column spacing 0.25 mm; the original has 96 pixels, the model 64.
    np.testing.assert_allclose(dicom["region_bottom_mm"], 0.5 * dicom["region_bottom_px"])
    np.testing.assert_allclose(dicom["region_left_mm"], 0.25 * dicom["region_left_px"])
    assert (dicom["region_bottom_px"] <= 96).all()
    assert ((dicom["region_top_px"] / 1.5) % 1 == 0).all()
    assert png["region_bottom_mm"].isna().all()
    assert png["region_bottom_px"].notna().all()


def test_radiomics_are_measured_for_flagged_regions(world: World) -> None:
    for number in range(6):
        world.add_png(number)
    planned(world)
    rows = scores(world)
    measured = rows[rows["radiomics_status"] == "ok"]
    assert len(measured) > 0
    assert measured["flagged"].all()
    assert measured.filter(like="radiomics_").drop(columns="radiomics_status").notna().all().all()
    others = rows[rows["radiomics_status"] != "ok"]
    assert others["radiomics_glcm_Contrast"].isna().all()


def test_a_model_without_reference_says_nothing_of_distribution(world: World) -> None:
    world.add_png(0)
    planned(world)
    assert scores(world)["out_of_distribution"].isna().all()


def test_nothing_in_the_results_names_the_patient(world: World) -> None:
    world.add_dicom(0)
    planned(world)
    scored(world)
    for path in Path(world.results_uri).rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes()
            assert b"patient-0" not in path.read_bytes()


def test_a_file_that_changed_since_planning_is_postponed(world: World) -> None:
    world.add_png(0, "changed.png")
    world.add_png(1, "same.png")
    planned(world)
    world.add_png(2, "changed.png")
    result = scored(world)
    assert result.rejected.to_pylist()[0]["status"] == "postponed"
    assert result.images.column("object_key").to_pylist() == ["same.png"]


def test_a_file_that_is_gone_is_noted(world: World) -> None:
    world.add_png(0).unlink()
    world.add_png(0)
    planned(world)
    (world.inbox / "x0000.png").unlink()
    assert [row["status"] for row in scored(world).rejected.to_pylist()] == ["vanished"]


def test_a_file_that_grows_while_it_is_read_is_postponed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.add_png(0)
    planned(world)

    def growing(uri: str) -> object:
        store, prefix = open_store(uri)
        if uri == str(world.inbox):
            with path.open("ab") as stream:
                stream.write(b"more")
        return store, prefix

    decode_in_this_process(monkeypatch)
    monkeypatch.setattr(nightly_read, "open_store", growing)
    assert [row["reason"] for row in scored(world).rejected.to_pylist()] == ["changed"]


def test_an_inbox_that_is_lost_fails_the_shard_instead_of_rejecting_its_x_rays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_png(0)
    planned(world)

    def lost(_: object, __: object) -> bytes:
        raise StoreUnavailableError("the store is gone")

    decode_in_this_process(monkeypatch)
    monkeypatch.setattr(nightly_read, "planned_content", lost)
    with pytest.raises(StoreUnavailableError):
        scored(world)
    assert not list(Path(world.results_uri).glob("ledger/plans/*/shards/*"))


@pytest.mark.parametrize(
    "processes", [{"num_decoders": 0}, {"num_decoders": 2}, {"num_measurers": 2}]
)
def test_results_do_not_depend_on_processes_and_a_second_run_leaves_them_alone(
    world: World, processes: dict[str, int]
) -> None:
    for number in range(9):
        world.add_png(number)
    planned(world)
    alone = scored(world)
    assert score(world.addresses, 1, 0, SCORING).status == "done_before"
    other = world.with_results("other")
    planned(other)
    score(other.addresses, 1, 0, SCORING.changed(**processes))
    found = first_shard(other)
    timings = list(TIMINGS)
    assert found.scores.drop_columns(timings).equals(alone.scores.drop_columns(timings))
    assert "ok" in found.scores["radiomics_status"].to_pylist()


def test_a_crash_while_decoding_costs_no_small_night_either(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: list[int] = []

    def noted(images: object, decode: object, num_workers: int) -> Iterator[RejectedImageError]:
        workers.append(num_workers)
        yield RejectedImageError(RejectReason.UNREADABLE, "the decoder crashed on it")

    monkeypatch.setattr("chexradinet.nightly.score.decode_in_order", noted)
    world.add_png(0)
    planned(world)
    outcome = score(world.addresses, 1, 0, SCORING.changed(num_decoders=2))
    assert (outcome.num_scored, outcome.num_excluded) == (0, 1)
    assert workers == [2]


def test_a_fault_of_the_reader_costs_one_x_ray_and_quotes_nothing_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_png(0)
    world.add_dicom(1)
    planned(world)

    def fault(*_: object) -> None:
        raise ValueError("SECRET^NAME")

    decode_in_this_process(monkeypatch)
    monkeypatch.setattr(nightly_read, "_dicom", fault)
    result = scored(world)
    assert result.images.num_rows == 1
    (row,) = result.rejected.to_pylist()
    assert row["reason"] == "unreadable"
    assert row["detail"].startswith("a fault of the reader: ValueError at line ")
    assert "SECRET" not in row["detail"]


def test_a_shard_that_is_not_there_is_refused(world: World) -> None:
    world.add_png(0)
    planned(world)
    with pytest.raises(ConfigError, match=r"shard is 1; it must be in \[0, 1\)"):
        score(world.addresses, 1, 1, SCORING)


def test_a_model_that_was_changed_after_planning_is_refused_and_nothing_is_lost(
    world: World,
) -> None:
    world.add_png(0)
    planned(world)
    weights = next((world.root / "models").glob("*/weights.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="was changed"):
        scored(world)
    weights.write_bytes(whole)
    assert scored(world).images.num_rows == 1


def test_a_plan_for_other_findings_than_the_model_knows_is_refused(world: World) -> None:
    world.add_png(0)
    planned(world)
    ledger = open_ledger(world.results_uri)
    key = ledger.plan_key(1, "plan.json")
    ledger.store.put(key, ledger.store.get(key).replace(b'"Mass"', b'"Edema"'))
    with pytest.raises(MismatchError, match="Edema"):
        scored(world)


def test_the_score_table_opens_with_plain_parquet_readers(world: World) -> None:
    world.add_png(0)
    _, night = world.run()
    assert night is not None
    name = next(name for name in world.results() if name.endswith("part-000001.parquet"))
    table: pa.Table = pq.read_table(io.BytesIO(world.results()[name]))
    assert table.num_rows == len(FINDINGS)


def test_radiomics_are_measured_beside_an_accelerator_only() -> None:
    assert num_measurers(0, "cpu") == 1
    assert num_measurers(0, "cuda") == max(1, available_processors() // 4)
    assert num_measurers(3, "cpu") == 3
