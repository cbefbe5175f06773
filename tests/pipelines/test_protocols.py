"""Protocol files: each compiles, is checked, ingests the tables of its data set, and fits them."""

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chexradinet.config import IngestConfig, SourceFormat
from chexradinet.config.parameters import RoundZero, Shape
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.findings import NIH_FINDINGS
from chexradinet.ingest.ingest import ingest
from chexradinet.model.resnet import build_network, normalise
from chexradinet.records import Split
from chexradinet.steps.training import configure
from chexradinet.training.train import training_data
from pipelines.parameters import asked_shape, definitions, load_compiled, parse_settings
from tests.ingest_world import chest

PROTOCOLS = Path(__file__).resolve().parents[2] / "pipelines" / "protocols"
HEAD = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
STUDIES = 12


def _picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(chest(seed, side=96)).save(path)


def _values(number: int) -> str:
    return ",".join(f"{(number + column) % 3 == 0:d}.0" for column in range(14))


def _nih(source: Path, shared_data: Path) -> None:
    """Link the published tables, and draw X-rays for some of their rows."""
    tables = shared_data / "nih_csv"
    for name in ("Data_Entry_2017_v2020.head2000.csv", "BBox_List_2017.csv"):
        (source / name).symlink_to(tables / name)
    for name in ("train_val_list.txt.gz", "test_list.txt.gz"):
        (source / name).symlink_to(tables / name)
    rows = (tables / "Data_Entry_2017_v2020.head2000.csv").read_text().splitlines()[1:]
    kept = [row.split(",") for row in rows]
    with gzip.open(tables / "test_list.txt.gz", "rt") as stream:
        tested = set(stream.read().split())
    boxes = (tables / "BBox_List_2017.csv").read_text().splitlines()
    boxed = {line.split(",")[0] for line in boxes}
    wanted = [row[0] for row in kept if row[0] in boxed][:2]
    # Every finding occurs in the training part.
    for finding in NIH_FINDINGS:
        wanted += [
            next(row[0] for row in kept if finding in row[1].split("|") and row[0] not in tested)
        ]
    wanted += [row[0] for row in kept if row[0] in tested][:3]
    for seed, name in enumerate(dict.fromkeys(wanted)):
        _picture(source / name, seed)


def _chexpert(source: Path, _: Path) -> None:
    for part, numbers in (("train", range(STUDIES)), ("valid", range(STUDIES, STUDIES + 3))):
        lines = [f"Path,Sex,Age,Frontal/Lateral,AP/PA,{HEAD}"]
        for number in numbers:
            file = f"{part}/patient{number:05d}/study1/view1_frontal.jpg"
            _picture(source / file, number)
            lines.append(f"CheXpert-v1.0-small/{file},Male,60,Frontal,AP,{_values(number)}")
        (source / f"{part}.csv").write_text("\n".join(lines))


def _mimic(source: Path, _: Path) -> None:
    tables: dict[str, list[str]] = {
        "chexpert": [f"subject_id,study_id,{HEAD}"],
        "split": ["dicom_id,study_id,subject_id,split"],
        "metadata": ["dicom_id,subject_id,study_id,ViewPosition"],
    }
    parts = itertools.cycle(["train", "train", "validate", "test"])
    for number in range(STUDIES):
        patient, study, image = 10000032 + number, 50414267 + number, f"d{number}"
        _picture(source / f"files/p10/p{patient}/s{study}/{image}.jpg", number)
        tables["chexpert"].append(f"{patient},{study},{_values(number)}")
        tables["split"].append(f"{image},{study},{patient},{next(parts)}")
        tables["metadata"].append(f"{image},{patient},{study},PA")
    for name, lines in tables.items():
        (source / f"mimic-cxr-2.0.0-{name}.csv").write_text("\n".join([*lines, ""]))


def _rsna(source: Path, _: Path) -> None:
    lines = ["patientId,x,y,width,height,Target"]
    for number in range(STUDIES):
        _picture(source / f"id{number}.png", number)
        lines.append(f"id{number}," + ("10,20,30,40,1" if number % 2 else ",,,,0"))
    (source / "stage_2_train_labels.csv").write_text("\n".join([*lines, ""]))


SOURCES: dict[str, Callable[[Path, Path], None]] = {
    "chexpert": _chexpert,
    "mimic": _mimic,
    "nih14": _nih,
    "rsna": _rsna,
}


def _ingested(settings: dict[str, Any], source: Path, target: Path) -> Dataset:
    config = IngestConfig(**settings).changed(ingest_workers=1, max_reject_fraction=1)
    ingest(str(source), target, config)
    return open_dataset(target)


def test_every_protocol_is_tried() -> None:
    assert {path.stem for path in PROTOCOLS.glob("*.yaml")} == set(SOURCES)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_protocol_compiles_ingests_its_tables_and_fits_what_comes_of_them(
    name: str, tmp_path: Path, shared_data: Path, compiled_training: Path
) -> None:
    file, source = PROTOCOLS / f"{name}.yaml", tmp_path / "source"
    source.mkdir()
    SOURCES[name](source, shared_data)
    words = [f"source={source}", f"models_uri={tmp_path / 'models'}"]
    # The pipeline is compiled for exactly this, once for all.
    shape = asked_shape(words, file)
    assert shape == Shape(max_rounds=2, has_arms=True)
    compiled = load_compiled(compiled_training)
    defaults = {
        key: one["defaultValue"]
        for key, one in definitions(compiled).items()
        if "defaultValue" in one
    }
    given = {**defaults, **parse_settings(compiled, words, file)}
    of_ingest, of_train, *_ = configure.python_func(**given, max_rounds=2, has_arms=True)

    data = _ingested(of_ingest, source, tmp_path / "dataset")
    counts = {split: len(data.rows(split)) for split in Split}
    assert min(counts.values()) >= 1, counts
    train = RoundZero(**of_train)
    training = training_data(data)
    network = build_network(train.network, len(data.info.findings)).eval()
    image = torch.as_tensor(training.fetch(training.rows[:1]))
    with torch.inference_mode():
        found = network(normalise(image))
    side = data.info.preprocessing.image_side // train.network.map_stride
    assert found.maps.shape == (1, len(data.info.findings), side, side)
    assert not np.isnan(training.labels[training.rows]).all()


def test_the_protocol_of_nih_keeps_its_official_split_and_boxes(
    tmp_path: Path, shared_data: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _nih(source, shared_data)
    settings = IngestConfig(data_format=SourceFormat.NIH, ingest_workers=1, max_reject_fraction=1)
    ingest(str(source), tmp_path / "dataset", settings)
    data = open_dataset(tmp_path / "dataset")
    with gzip.open(shared_data / "nih_csv" / "test_list.txt.gz", "rt") as stream:
        tested = set(stream.read().split())
    names = data.manifest["image_id"].to_numpy()
    assert {str(name) for name in names[data.rows(Split.TEST)]} <= tested
    assert tuple(data.info.findings) == NIH_FINDINGS
    assert any(data.boxes(row) for row in range(len(data)))
