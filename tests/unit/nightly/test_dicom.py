"""DICOM results of whole nights: whose they are, when they go, what they say."""

import io
import os
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from chexradinet.config import QualityConfig
from chexradinet.config.nightly import ResultSettings
from chexradinet.nightly import score as score_module
from tests.nightly_reference import publish_reference
from tests.nightly_world import FINDINGS, World, calibration, make_world

WITH_DICOM = ResultSettings(quality=QualityConfig(check_inversion=False), dicom_results=True)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return an empty inbox and a published model."""
    return make_world(tmp_path)


def dicom_results(world: World) -> dict[str, bytes]:
    """Return the DICOM results of all nights."""
    return {name: data for name, data in world.results().items() if name.startswith("dicom/")}


def result_of(world: World, modality: str) -> Dataset:
    """Return the only result of a kind, `SR` or `OT`."""
    files = [pydicom.dcmread(io.BytesIO(data)) for data in dicom_results(world).values()]
    (found,) = [file for file in files if file.Modality == modality]
    return found


def answers(item: Dataset, meaning: str) -> list[str]:
    """Return the values of all CODE items of a name in a report."""
    found = []
    for part in item.get("ContentSequence", []):
        name = part.get("ConceptNameCodeSequence", [])
        if part.ValueType == "CODE" and [code.CodeMeaning for code in name] == [meaning]:
            found.append(part.ConceptCodeSequence[0].CodeMeaning)
        found += answers(part, meaning)
    return found


def test_an_x_ray_sent_again_keeps_the_results_of_the_plan_that_scored_it(world: World) -> None:
    path = world.add_dicom(0)
    world.run(results=WITH_DICOM)
    before = dicom_results(world)
    assert len(before) == 2
    assert {name.split("/")[2][:7] for name in before} == {"000001-"}
    later = path.stat().st_mtime + 3600
    path.write_bytes(path.read_bytes())
    os.utime(path, (later, later))
    _, night = world.run(results=WITH_DICOM)
    assert night is not None
    assert night.excluded == {"duplicate": {"duplicate": 1}}
    assert dicom_results(world) == before


def test_results_of_an_x_ray_withdrawn_after_a_kill_are_taken_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_dicom(0, "a.dcm")
    gone = world.add_dicom(1, "b.dcm")

    def killed(_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(score_module, "pack", killed)
        with pytest.raises(KeyboardInterrupt):
            world.run(results=WITH_DICOM)
    assert len(dicom_results(world)) == 4
    gone.unlink()
    _, night = world.run(results=WITH_DICOM)
    assert night is not None
    assert night.excluded == {"vanished": {"vanished": 1}}
    assert len(dicom_results(world)) == 2
    assert result_of(world, "SR").StudyInstanceUID == "1.2.3.5.0"


def test_a_night_of_another_model_leaves_the_results_of_the_first_beside_its_own(
    world: World,
) -> None:
    world.add_dicom(0)
    world.run(results=WITH_DICOM)
    before = dicom_results(world)
    world.publish(seed=5)
    world.run(results=WITH_DICOM, rescore_since="2020-01-01")
    after = dicom_results(world)
    assert len(after) == 4
    assert before.items() <= after.items()


@pytest.mark.parametrize(("threshold", "shown"), [(0.0, "heatmap of"), (1.0, "no heatmap")])
def test_a_heatmap_is_drawn_where_a_finding_is_flagged_and_only_there(
    world: World, threshold: float, shown: str
) -> None:
    fitted = calibration()
    for finding in FINDINGS:
        fitted["findings"][finding]["threshold"] = threshold
    world.publish(calibration=fitted)
    world.add_dicom(0)
    world.run(results=WITH_DICOM)
    assert shown in result_of(world, "OT").DerivationDescription


@pytest.mark.parametrize(("threshold", "said"), [(0.0, "Yes"), (1e6, "No")])
def test_the_report_says_whether_the_x_ray_is_out_of_distribution_as_the_tables_do(
    world: World, threshold: float, said: str
) -> None:
    publish_reference(world, threshold)
    world.add_dicom(0)
    world.run(results=WITH_DICOM)
    assert answers(result_of(world, "SR"), "Out of distribution") == [said]
    (flag,) = {row["out_of_distribution"] for row in world.table("part-")}
    assert flag == ("true" if said == "Yes" else "false")


def test_results_of_a_hospital_in_tokyo_bear_the_day_of_their_study(world: World) -> None:
    taken = {"StudyDate": "20261121", "StudyTime": "080500", "TimezoneOffsetFromUTC": "+0900"}
    path = world.add_dicom(0, header=taken)
    arrived = datetime(2026, 11, 20, 23, 11, tzinfo=UTC).timestamp()
    os.utime(path, (arrived, arrived))
    world.run(results=WITH_DICOM)
    for modality in ("SR", "OT"):
        found = result_of(world, modality)
        assert (found.ContentDate, found.ContentTime) == ("20261121", "081100")
        assert found.TimezoneOffsetFromUTC == "+0900"
