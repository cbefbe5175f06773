"""What a model or a sender may do wrong, and a night neither passes on nor fails over."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings
from chexradinet.errors import StoreError, StoreUnavailableError
from chexradinet.model.inference import Predictions, predict_folded
from chexradinet.nightly import read as nightly_read
from chexradinet.nightly import score as nightly_score
from chexradinet.nightly.collect import collect
from chexradinet.nightly.model import NightModel
from chexradinet.nightly.plan import plan
from chexradinet.nightly.score import score
from tests.nightly_world import (
    FINDINGS,
    SCORING,
    World,
    calibration,
    decode_in_this_process,
    make_world,
)

CONFIG = PlanConfig(
    settle_s=0.0, results=ResultSettings(quality=QualityConfig(check_inversion=False))
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def damage(monkeypatch: pytest.MonkeyPatch, field: str, value: float, row: int) -> None:
    """Let the model give a value that is not finite for one X-ray of each batch."""

    def damaged(*args: object, **options: object) -> Predictions:
        found = predict_folded(*args, **options)  # type: ignore[arg-type]
        values = getattr(found, field).copy()
        values[row].flat[-1] = value
        return found._replace(**{field: values})

    monkeypatch.setattr(nightly_score, "predict_folded", damaged)


@pytest.mark.parametrize("field", ["logits", "maps", "embedding"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_x_ray_that_the_model_gives_nan_for_is_not_scored_and_the_others_are_as_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, field: str, value: float
) -> None:
    for number in range(3):
        world.add_png(number)
    world.run()
    whole = [row for row in world.rows("part-") if "x0001.png" not in row]
    other = world.with_results("other")
    damage(monkeypatch, field, value, row=1)
    _, night = other.run()
    assert night is not None
    assert night.excluded == {"not_scored": {"not_finite": 1}}
    assert other.rows("part-") == whole
    assert [row["object_key"] for row in other.table("rejected-")] == ["x0001.png"]
    assert not any("nan" in cell for row in other.rows("worklist") for cell in row)


def test_a_model_that_gives_nan_alone_scores_nothing_and_a_sound_one_scores_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_png(0)
    with monkeypatch.context() as patched:
        damage(patched, "logits", np.nan, row=0)
        _, night = world.run()
    assert night is not None
    assert (night.num_scored, world.scored_keys()) == (0, [])
    world.run()
    assert world.scored_keys() == ["x0000.png"]


@pytest.mark.parametrize(
    "uid", ["=HYPERLINK(1)", "@SUM(1)", "DOE^JANE", "1.2.3.4\t5", "1." * 40 + "1", "1..2"]
)
def test_what_is_not_a_uid_is_not_taken_for_one(world: World, uid: str) -> None:
    world.add_dicom(0, header={"SOPInstanceUID": uid, "StudyInstanceUID": uid})
    world.run()
    for row in [*world.table("part-"), *world.table("worklist")]:
        assert not {uid, uid.strip()} & set(row.values())
    rows = world.table("part-")
    assert len(rows) == len(FINDINGS)
    assert {(row["sop_uid"], row["study_uid"]) for row in rows} == {("", rows[0]["image_key"])}


@pytest.mark.parametrize("name", ["DOE^JANE.png", "DOE^JANE/1.png"])
def test_no_error_and_no_log_names_an_object_of_the_inbox(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    decode_in_this_process(monkeypatch)
    caplog.set_level(logging.DEBUG)
    path = world.add_png(0, name)
    for said in (f"cannot read {path}: disk", f"cannot read {name}", "cannot read 'DOE^JANE'"):

        def fails(*_: object, said: str = said) -> bytes:
            raise StoreUnavailableError(said)

        monkeypatch.setattr(nightly_read, "planned_content", fails)
        with pytest.raises(StoreError) as raised:
            world.run()
        assert type(raised.value) is StoreUnavailableError
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
        assert "DOE" not in str(raised.value)
    assert "DOE" not in caplog.text


def test_a_link_loop_and_a_folder_without_permission_are_counted_and_stop_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_png(0)
    (world.inbox / "a").symlink_to(world.inbox / "b")
    (world.inbox / "b").symlink_to(world.inbox / "a")
    (world.inbox / "folder").mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("/folder"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    outcome, night = world.run()
    assert night is not None
    assert (outcome.inbox.num_unreadable, night.num_scored) == (3, 1)
    assert "3 links or folders of the inbox cannot be read" in outcome.as_text()
    pages = {name: data for name, data in world.results().items() if name.endswith(".html")}
    assert len(pages) == 3
    assert all(b"link or folder unreadable" in data for data in pages.values())
    assert plan(world.addresses, CONFIG).status == "nothing_new"


def test_a_finding_without_a_threshold_is_not_assessed_and_has_no_probability(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = calibration()
    fitted["findings"]["Mass"] |= {
        "status": "not_calibrated", "threshold": None, "slope": 1.0, "intercept": 0.0,
    }  # fmt: skip
    points = {"Effusion": {"sensitivity": 0.9, "specificity": 0.25}}
    world.publish(calibration=fitted)
    monkeypatch.setattr(NightModel, "operating_points", points)
    world.add_dicom(0)
    world.run()
    rows = {row["finding"]: row for row in world.table("part-")}
    assert (rows["Mass"]["flagged"], rows["Mass"]["probability"]) == ("", "")
    assert rows["Mass"]["radiomics_status"] == "not_assessed"
    assert float(rows["Mass"]["raw_score"])
    assert (rows["Effusion"]["sensitivity"], rows["Effusion"]["specificity"]) == ("0.9", "0.25")
    assert rows["Effusion"]["flagged"] in ("true", "false")
    assert world.table("worklist")[0]["not_assessed"] == "Mass"


def test_only_x_rays_count_as_files_without_a_score_and_a_png_is_named_in_the_csv(
    world: World,
) -> None:
    for name in ("readme.txt", "list.csv", "broken.dcm", "1.2.840.7", "noname"):
        (world.inbox / name).write_bytes(b"x" * 10)
    world.add_png(0)
    world.add_dicom(1)
    world.run()
    (page,) = [data for name, data in world.results().items() if name.endswith("worklist.html")]
    assert b"rejected, not an image: 3<" in page
    assert b"x0000" not in page
    files = {row["study_uid"]: row["files"] for row in world.table("worklist")}
    assert sorted(files.values()) == ["", "x0000.png"]
    assert files["1.2.3.5.1"] == ""


def test_a_file_that_is_too_large_or_decodes_too_slowly_costs_itself_alone(
    world: World,
) -> None:
    for number in range(2):
        world.add_dicom(number)
    with (world.inbox / "huge.dcm").open("wb") as stream:
        stream.truncate(600 << 20)
    plan(world.addresses, CONFIG)
    slow = SCORING.changed(decode_timeout_s=1e-4)
    outcome = score(world.addresses, 1, 0, slow)
    assert (outcome.num_scored, outcome.num_excluded) == (0, 3)
    collect(world.addresses, 1)
    reasons = {row["object_key"]: row["reason"] for row in world.table("rejected-")}
    assert reasons == {"d0000.dcm": "too_slow", "d0001.dcm": "too_slow", "huge.dcm": "too_large"}
