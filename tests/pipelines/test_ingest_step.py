"""What the pipeline says of ingest arrives in the data set."""

from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from chexradinet.config import DicomConfig, QualityConfig
from chexradinet.dataset.dataset import open_dataset
from chexradinet.steps.ingest import ingest
from pipelines.parameters import definitions
from tests.ingest_world import KEY_VARIABLE, SECRET, dicom

DEFAULTS: dict[str, Any] = {
    "data_format": "dicom",
    "findings": "",
    "image_side": 32,
    "geometry": "squash",
    "uncertain_labels": "ignore",
    "validation_fraction": 0.0,
    "split_seed": 0,
    "max_reject_fraction": 1.0,
}


def test_step_passes_tables_fractions_limits_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    (tmp_path / "source").mkdir()
    (tmp_path / "tables").mkdir()
    for number in range(4):
        content = dicom(number, PatientAge=f"{8 + number:03d}Y")
        (tmp_path / "source" / f"{number}").write_bytes(content)
    rows = [f"{number},p{number},Mass" for number in range(4)]
    (tmp_path / "tables" / "labels.csv").write_text("\n".join(["file,patient,findings", *rows]))
    dataset = dsl.Dataset(uri=str(tmp_path / "dataset"))
    report = dsl.HTML(uri=str(tmp_path / "report.html"))
    for artifact in (dataset, report):
        artifact.path = artifact.uri
    ingest.python_func(
        source=str(tmp_path / "source"),
        **DEFAULTS,
        labels=str(tmp_path / "tables"),
        test_fraction=0.34,
        voi_index=1,
        min_age_years=9.0,
        check_inversion=False,
        num_workers=1,
        shard_size=2,
        dataset=dataset,
        ingest_report=report,
    )
    made = open_dataset(tmp_path / "dataset")
    assert made.info.findings == ("Mass",)
    assert made.info.shard_sizes == (2, 1)
    assert made.info.counts["rejected"] == {"under_age": 1}
    assert made.info.counts["splits"]["test"] == 1
    assert made.info.quality == QualityConfig(min_age_years=9, check_inversion=False)
    assert made.info.preprocessing.dicom == DicomConfig(voi_index=1)
    assert dataset.metadata["digest"] == made.digest
    assert (tmp_path / "report.html").exists()


def test_every_setting_of_the_step_is_one_of_the_pipeline(document: dict[str, Any]) -> None:
    (task,) = (
        task["inputs"]["parameters"]
        for name, task in document["root"]["dag"]["tasks"].items()
        if name == "ingest"
    )
    given = {name: value.get("componentInputParameter") for name, value in task.items()}
    step = document["components"]["comp-ingest"]["inputDefinitions"]["parameters"]
    assert {given[name] for name in step} <= set(definitions(document))
    assert given["num_workers"] == "ingest_workers"
    assert given["shard_size"] == "ingest_shard_size"
    assert set(given) >= {"labels", "test_fraction", "voi_index", "min_age_years"}
