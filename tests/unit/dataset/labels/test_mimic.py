import gzip
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels import LabelTable
from chexradinet.dataset.labels.chexpert import read_mimic_table
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.records import RejectReason, Split, View

LABEL_HEAD = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)


def mimic(folder: Path, **settings: object) -> LabelTable:
    labels = LABEL_HEAD.replace("Path,Sex,Age,Frontal/Lateral,AP/PA", "subject_id,study_id")
    with gzip.open(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", "wt") as stream:
        stream.write(f"{labels}10000032,50414267,,,,1.0,,-1.0,,,,,,,,\n")
    (folder / "mimic-cxr-2.0.0-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\n"
        + "".join(
            f"d{n},5,1,{split}\n" for n, split in enumerate(["train", "validate", "test"] * 2)
        )
    )
    codes = ["PA,", "LATERAL,", ",antero-posterior", ",", "AP,"]
    studies = [50414267] * 4 + [59999999]
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_text(
        "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning\n"
        + "".join(
            f"d{n},10000032,{study},{code}\n"
            for n, (study, code) in enumerate(zip(studies, codes, strict=True))
        )
    )
    return read_mimic_table(folder, IngestConfig(**settings))  # type: ignore[arg-type]


def test_mimic_tables_are_joined(tmp_path: Path) -> None:
    rows = mimic(tmp_path, uncertain="ones").rows
    assert rows[0].file == "p10/p10000032/s50414267/d0.jpg"
    assert rows[0].labels["Lung_Opacity"] == rows[0].labels["Edema"] == 1
    assert [row.split for row in rows[:3]] == [Split.TRAIN, Split.VALIDATION, Split.TEST]
    assert [row.view for row in rows[:3]] == [View.PA, View.UNKNOWN, View.AP]
    not_frontal, not_labelled = RejectReason.NOT_FRONTAL, RejectReason.NOT_LABELLED
    assert [row.rejected for row in rows] == [None, not_frontal, None, not_frontal, not_labelled]


def test_mimic_image_without_an_official_split_is_refused(tmp_path: Path) -> None:
    mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text("dicom_id,split\nd0,train\n")
    with pytest.raises(LabelTableError, match="row 3: the image has no official split"):
        read_mimic_table(tmp_path, IngestConfig())


def test_mimic_without_a_table_is_a_source_error(tmp_path: Path) -> None:
    mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-split.csv").unlink()
    with pytest.raises(SourceError, match=r"mimic-cxr-\.\.\.-split\.csv"):
        read_mimic_table(tmp_path, IngestConfig())


@pytest.mark.parametrize(
    ("table", "row"),
    [("chexpert", "10000032,50414267" + "," * 14), ("split", "d0,5,1,test")],
)
def test_a_study_or_a_split_that_is_named_twice_is_refused(
    tmp_path: Path, table: str, row: str
) -> None:
    mimic(tmp_path)
    path = tmp_path / f"mimic-cxr-2.0.0-{table}.csv"
    packed = path.with_name(f"{path.name}.gz")
    if packed.exists():
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    path.write_text(f"{path.read_text()}{row}\n")
    with pytest.raises(LabelTableError, match="again; keep one row of it"):
        read_mimic_table(tmp_path, IngestConfig())
