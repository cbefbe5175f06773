"""A user's own findings, from their file to the order of the worklist and the code in a report."""

import io
from pathlib import Path

import pydicom
import pytest

from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.config.nightly import ResultSettings, WorklistConfig
from chexradinet.errors import ConfigError
from chexradinet.ingest.ingest import ingest
from chexradinet.model import read_bundle_info
from chexradinet.nightly.model import with_urgencies
from chexradinet.phantom import write_phantom
from chexradinet.training.train import train
from tests.nightly_world import calibration, make_world
from tests.unit.conftest import TINY_NETWORK, TINY_TRAINING
from tests.unit.nightly.test_dicom import WITH_DICOM, dicom_results

FILE = """
- name: Tuberculosis
  synonyms: [TB]
  urgency: 0.95
  code: {value: 56717001, scheme: SCT, meaning: Tuberculosis}
- name: Effusio left
  synonyms: [Erguss]
  urgency: 0.9
- Cardiomegaly
"""
NAMES = ("Tuberculosis", "Effusio_left", "Cardiomegaly")
DETAILS = {
    "Tuberculosis": {"urgency": 0.95, "code": ["56717001", "SCT", "Tuberculosis"]},
    "Effusio_left": {"urgency": 0.9},
}


def test_urgency_and_code_of_a_file_reach_worklist_and_report(tmp_path: Path) -> None:
    file, source = tmp_path / "findings.yaml", tmp_path / "x-rays"
    file.write_text(FILE)
    write_phantom(source, 60, 96, seed=3)
    labels = (source / "labels.csv").read_text(encoding="utf-8")
    labels = labels.replace("Nodule", "TB").replace("Effusion", "Erguss")
    (source / "labels.csv").write_text(labels, encoding="utf-8")
    config = IngestConfig(
        findings=str(file),  # type: ignore[arg-type]
        preprocessing=PreprocessingConfig(image_side=64),
        ingest_workers=1,
    )
    ingest(str(source), tmp_path / "data", config)
    train(tmp_path / "data", tmp_path / "bundle", TINY_NETWORK, TINY_TRAINING)
    trained = read_bundle_info(tmp_path / "bundle")[0]
    assert (trained.findings, trained.finding_details) == (NAMES, DETAILS)

    world = make_world(tmp_path / "world")
    world.publish(
        findings=NAMES, calibration=calibration(NAMES), finding_details=trained.finding_details
    )
    world.add_dicom(1)
    world.run(results=WITH_DICOM)
    scores = {row["finding"]: float(row["probability"]) for row in world.table("part-")}
    (row,) = world.table("worklist")
    urgencies = {"Tuberculosis": 0.95, "Effusio_left": 0.9, "Cardiomegaly": 0.4}
    expected = max(urgencies[name] * scores[name] for name in NAMES)
    assert float(row["priority"]) == pytest.approx(expected, abs=2e-6)
    report = next(data for data in dicom_results(world).values() if b"Tuberculosis" in data)
    said = str(pydicom.dcmread(io.BytesIO(report)))
    assert "'56717001'" in said
    assert "'Effusio_left'" in said


def test_the_nights_own_urgencies_win_over_the_models(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    digest = world.publish(finding_details={"Mass": {"urgency": 1.0}, "Effusion": {"urgency": 0.5}})
    info = read_bundle_info(world.root / "models" / digest)[0]
    given = ResultSettings(worklist=WorklistConfig(urgency={"Mass": 0.2}))
    listed = with_urgencies(given, info).worklist
    assert [listed.urgency_of(name) for name in ("Mass", "Effusion", "Cardiomegaly")] == [
        0.2,
        0.5,
        0.4,
    ]


@pytest.mark.parametrize(
    "entry",
    [
        "Cyst;urgency=2",
        "Cyst;urgency=high",
        "Cyst;code=1:SCT",
        "Cyst;code=1:SCT:Zyste und Größe",
        "Cyst;colour=red",
    ],
)
def test_details_that_cannot_be_meant_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match="of finding Cyst cannot be read; it must be urgency="):
        IngestConfig(findings=entry)  # type: ignore[arg-type]


def test_a_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("- name: Cyst\n  priority: 1\n")
    with pytest.raises(ConfigError, match="is not a YAML list of names"):
        IngestConfig(findings=str(tmp_path / "own.yaml"))  # type: ignore[arg-type]
