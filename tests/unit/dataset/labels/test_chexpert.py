import math
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels import LabelTable
from chexradinet.dataset.labels.chexpert import read_chexpert_table
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.records import RejectReason, Split, View

CHEXPERT_HEAD = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
CHEXPERT_PATH = "CheXpert-v1.0-small/{}/patient0000{}/study1/view{}_{}.jpg"


def chexpert(folder: Path, *, test: bool = False, **settings: object) -> LabelTable:
    path = CHEXPERT_PATH.format
    train = [
        f"{path('train', 1, 1, 'frontal')},Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
        f"{path('train', 2, 1, 'frontal')},Male,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,,,1.0,,,",
        f"{path('train', 2, 2, 'lateral')},Male,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,,,1.0,,,",
    ]
    valid = [f"{path('valid', 3, 1, 'frontal')},Male,20,Frontal,AP" + ",0.0" * 13 + ",1.0"]
    (folder / "train.csv").write_text(CHEXPERT_HEAD + "\n".join(train))
    (folder / "valid.csv").write_text(CHEXPERT_HEAD + "\n".join(valid))
    if test:
        row = f"{path('test', 4, 1, 'frontal')},Male,20,Frontal,AP" + ",0.0" * 14
        (folder / "test.csv").write_text(CHEXPERT_HEAD + row)
    return read_chexpert_table(folder, IngestConfig(**settings))  # type: ignore[arg-type]


def test_chexpert_row_is_read_in_full(tmp_path: Path) -> None:
    table = chexpert(tmp_path)
    first, second, lateral, valid = table.rows
    assert first.file == "train/patient00001/study1/view1_frontal.jpg"
    assert (first.patient_id, first.view, first.sex, first.age) == (
        *("patient00001", View.AP, "F"),
        68,
    )
    assert first.labels["Support_Devices"] == 1
    assert first.labels["Edema"] == 0  # not mentioned is absent
    assert second.labels["Effusion"] == 1
    assert lateral.rejected is RejectReason.NOT_FRONTAL
    assert (first.split, valid.split) == (Split.TRAIN, Split.TEST)


def test_chexpert_valid_is_validation_where_there_is_a_test_table(tmp_path: Path) -> None:
    assert [row.split for row in chexpert(tmp_path, test=True).rows] == [
        *(Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALIDATION),
        Split.TEST,
    ]


@pytest.mark.parametrize(
    ("policy", "edema", "consolidation"),
    [
        ("ignore", math.nan, math.nan),
        ("ones", 1, 1),
        ("zeros,Edema=ones", 1, 0),
        ("ones, edema = ignore", math.nan, 1),
    ],
)
def test_uncertain_label_follows_the_policy_of_its_finding(
    tmp_path: Path, policy: str, edema: float, consolidation: float
) -> None:
    labels = chexpert(tmp_path, uncertain=policy).rows[1].labels
    found = [labels["Edema"], labels["Consolidation"], labels["Lung_Opacity"]]
    assert found == pytest.approx([edema, consolidation, 1], nan_ok=True)


def test_chexpert_without_its_tables_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"train\.csv and valid\.csv missing"):
        read_chexpert_table(tmp_path, IngestConfig())


def test_chexpert_label_that_is_no_label_is_refused(tmp_path: Path) -> None:
    chexpert(tmp_path)
    path = tmp_path / "valid.csv"
    path.write_text(path.read_text().replace(",1.0", ",2.0"))
    with pytest.raises(LabelTableError, match=r"valid\.csv, row 2: Support_Devices is '2\.0'"):
        read_chexpert_table(tmp_path, IngestConfig())


@pytest.mark.parametrize("name", ["test_labels.csv", "groundtruth.csv"])
def test_test_labels_as_published_have_paths_and_labels_only(tmp_path: Path, name: str) -> None:
    chexpert(tmp_path)
    labels = CHEXPERT_HEAD.strip().split("PA,")[1]
    path = "test/patient64741/study1/view{}_{}.jpg"
    (tmp_path / name).write_text(
        f"Path,{labels}\n"
        f"{path.format(1, 'frontal')}{',0.0' * 13},1.0\n"
        f"CheXpert-v1.0/{path.format(2, 'lateral')}{',0.0' * 14}\n"
    )
    *_, valid, frontal, lateral = read_chexpert_table(tmp_path, IngestConfig()).rows
    assert [row.split for row in (valid, frontal, lateral)] == [
        *(Split.VALIDATION, Split.TEST, Split.TEST)
    ]
    assert (frontal.rejected, lateral.rejected) == (None, RejectReason.NOT_FRONTAL)
    assert frontal.labels["Support_Devices"] == 1
    assert frontal.patient_id == "patient64741"
    (tmp_path / "test.csv").write_text("Path\n")
    with pytest.raises(SourceError, match="are both test labels; keep one"):
        read_chexpert_table(tmp_path, IngestConfig())
