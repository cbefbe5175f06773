"""The public data sets end to end: tables and files as downloaded, and copies in other formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexradinet.config import QualityConfig
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.ingest.ingest import ingest
from chexradinet.records import Box, LabelledBox
from tests.ingest_world import KEY_VARIABLE, SECRET, chest, dicom, dicom_config

FINDINGS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(chest(seed)).save(path)


def ingested(source: Path, convention: str, **settings: object) -> Dataset:
    target = source.with_name("dataset")
    ingest(str(source), target, dicom_config(format=convention, **settings))
    dataset = open_dataset(target)
    assert dataset.info.ingest["format"] == convention
    return dataset


def rejected(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.rejected["source_uri"], dataset.rejected["reason"], strict=True))


@pytest.fixture
def chexpert(source: Path) -> Path:
    """Return eight frontal X-rays and a lateral of the training part, and two of the other."""
    rows: dict[str, list[str]] = {"train": [], "valid": []}
    for number in range(10):
        part = "train" if number < 8 else "valid"
        file = f"{part}/patient{number:05d}/study1/view1_frontal.jpg"
        picture(source / file, number)
        rows[part].append(
            f"CheXpert-v1.0-small/{file},Male,60,Frontal,AP,,,,,,-1.0,,,,,{number % 2}.0,,,"
        )
    side = "train/patient00000/study1/view2_lateral.jpg"
    picture(source / side, 20)
    rows["train"].append(f"CheXpert-v1.0-small/{side},Male,60,Lateral,,,,,,,,,,,,,,,")
    for part, lines in rows.items():
        head = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{FINDINGS}"
        (source / f"{part}.csv").write_text("\n".join([head, *lines]))
    return source


@pytest.mark.parametrize(("policy", "edema"), [("ones", 1.0), ("zeros", 0.0)])
def test_chexpert_keeps_its_split_labels_and_policy(
    chexpert: Path, policy: str, edema: float
) -> None:
    dataset = ingested(chexpert, "chexpert", uncertain=policy)
    assert dataset.info.counts["splits"] == {"train": 7, "validation": 1, "test": 2}
    assert rejected(dataset) == {"train/patient00000/study1/view2_lateral.jpg": "not_frontal"}
    assert dataset.manifest["Edema"].tolist() == [edema] * 10
    assert dataset.manifest["Effusion"].tolist() == [0, 1] * 5
    assert set(dataset.manifest["view"]) == {"AP"}


@pytest.fixture
def mimic(source: Path) -> Path:
    """Return the tables of MIMIC-CXR-JPG for three X-rays, a lateral among them; no image yet."""
    release = "mimic-cxr-2.0.0"
    images = [("d0", "10000032", "50414267"), ("d1", "10000033", "50414268")]
    images.append(("d2", "10000033", "50414268"))
    (source / f"{release}-chexpert.csv").write_text(
        f"subject_id,study_id,{FINDINGS}\n"
        + "".join(f"{who},{study},,,,1.0,,-1.0,,,,,,,,\n" for _, who, study in images[:2])
    )
    (source / f"{release}-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\n"
        + "".join(
            f"{image},{study},{who},{'train' if who.endswith('2') else 'test'}\n"
            for image, who, study in images
        )
    )
    views = ("PA", "AP", "LATERAL")
    (source / f"{release}-metadata.csv").write_text(
        "dicom_id,subject_id,study_id,ViewPosition\n"
        + "".join(
            f"{image},{who},{study},{view}\n"
            for (image, who, study), view in zip(images, views, strict=True)
        )
    )
    return source


def mimic_file(number: int, suffix: str) -> str:
    place = ("p10/p10000032/s50414267", "p10/p10000033/s50414268", "p10/p10000033/s50414268")
    return f"files/{place[number]}/d{number}{suffix}"


def test_mimic_joins_labels_views_and_splits(mimic: Path) -> None:
    for number in range(3):
        picture(mimic / mimic_file(number, ".jpg"), number)
    dataset = ingested(mimic, "mimic")
    assert dataset.manifest["split"].tolist() == ["train", "test"]
    assert dataset.manifest["view"].tolist() == ["PA", "AP"]
    assert dataset.manifest["Lung_Opacity"].tolist() == [1, 1]
    assert np.isnan(dataset.manifest["Edema"]).all()
    assert rejected(dataset) == {mimic_file(2, ".jpg"): "not_frontal"}


def test_mimic_cxr_as_dicom_takes_the_tables_of_its_jpeg_edition(
    mimic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    for number in range(3):
        (mimic / mimic_file(number, ".dcm")).parent.mkdir(parents=True, exist_ok=True)
        (mimic / mimic_file(number, ".dcm")).write_bytes(dicom(number))
    dataset = ingested(mimic, "mimic")
    assert dataset.manifest["split"].tolist() == ["train", "test"]
    assert dataset.info.counts["rejected"] == {"not_frontal": 1}
    assert dataset.info.deidentified


@pytest.fixture
def rsna(source: Path) -> Path:
    """Return the label table of three exposures, the first with a box; no image yet."""
    table = "patientId,x,y,width,height,Target\nid0,16,8,32,16,1\nid1,,,,,0\nid2,,,,,0\n"
    (source / "stage_2_train_labels.csv").write_text(table)
    return source


def test_rsna_scales_its_boxes_and_is_judged_by_its_headers(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    (rsna / "stage_2_train_images").mkdir()
    for number in range(3):
        # As published: secondary captures whose modality says CR.
        header = {"Modality": "CR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
        age = "009Y" if number == 2 else "040Y"
        content = dicom(number, PatientAge=age, **header)
        (rsna / "stage_2_train_images" / f"id{number}.dcm").write_bytes(content)
    dataset = ingested(rsna, "rsna", quality=QualityConfig(min_age_years=18))
    assert dataset.info.findings == ("Pneumonia",)
    assert dataset.manifest["Pneumonia"].tolist() == [1, 0]
    # 64 px originals on 32 px.
    assert dataset.boxes(0) == (LabelledBox("Pneumonia", Box(4, 8, 12, 24)),)
    assert dataset.info.counts["rejected"] == {"under_age": 1}


def test_rsna_as_pictures_and_nih_as_jpeg_are_found_by_name(rsna: Path) -> None:
    for number in range(3):
        picture(rsna / f"id{number}.png", number)
    dataset = ingested(rsna, "rsna")
    assert dataset.manifest["Pneumonia"].tolist() == [1, 0, 0]
    nih = rsna.with_name("nih")
    picture(nih / "images" / "00000001_000.jpg", 1)
    picture(nih / "images" / "00000002_000.jpg", 2)
    (nih / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Patient ID,Patient Age\n"
        "00000001_000.png,Mass|Nodule,1,9\n00000002_000.png,No Finding,2,40\n"
    )
    dataset = ingested(nih, "nih")
    # The published set has children too: the limit of age is one of DICOM files.
    assert dataset.manifest["age"].tolist() == [9, 40]
    assert dataset.manifest["Mass"].tolist() == [1, 0]
    assert dataset.info.counts["rejected"] == {}


def test_chexpert_is_read_in_the_four_batches_that_are_downloaded(source: Path) -> None:
    first = source / "CheXpert-v1.0 batch 1 (validate & csv)"
    head, rest = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{FINDINGS}", ",Male,60,Frontal,AP" + "," * 14
    train, valid = [head], [head]
    for number in range(6):
        batch = f"CheXpert-v1.0 batch {2 + number // 2} (train {1 + number // 2})"
        name = f"patient{number:05d}/study1/view1_frontal.jpg"
        picture(source / batch / name, number)
        train.append(f"CheXpert-v1.0/train/{name}{rest}")
    for number in range(64541, 64543):
        name = f"valid/patient{number}/study1/view1_frontal.jpg"
        picture(first / name, number)
        valid.append(f"CheXpert-v1.0/{name}{rest}")
    (first / "train.csv").write_text("\n".join(train))
    (first / "valid.csv").write_text("\n".join(valid))
    target = source.with_name("dataset")
    ingest(str(source), target, dicom_config(format="chexpert"), labels=str(first))
    dataset = open_dataset(target)
    assert dataset.info.counts["splits"] == {"train": 5, "validation": 1, "test": 2}
    assert rejected(dataset) == {}
