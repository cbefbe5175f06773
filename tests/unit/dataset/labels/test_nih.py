import gzip
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels.nih import (
    read_boxes,
    read_nih_table,
    read_rsna_table,
    read_split_lists,
)
from chexradinet.errors import LabelTableError
from chexradinet.records import Box, Split, View


@pytest.fixture
def nih_folder(shared_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the named NIH tables into an empty folder."""

    def copy(*names: str) -> Path:
        for name in names:
            shutil.copyfile(shared_data / "nih_csv" / name, tmp_path / name)
        return tmp_path

    return copy


@pytest.mark.parametrize(
    ("name", "num_rows", "num_patients", "notes"),
    [
        ("Data_Entry_2017_v2020.head2000.csv", 2000, 508, {}),
        ("Data_Entry_2017.old_format.head.csv", 22, 6, {}),
        ("sample_labels.kaggle.csv", 5606, 4230, {"impossible or unreadable age": 1}),
        ("sample_labels.renamed_columns_variant.head2000.csv", 2000, None, {}),
    ],
)
def test_every_nih_edition_is_read_completely(
    nih_folder: Callable[..., Path],
    name: str,
    num_rows: int,
    num_patients: int | None,
    notes: dict[str, int],
) -> None:
    table = read_nih_table(nih_folder(name), IngestConfig())
    assert len(table.rows) == num_rows
    assert num_patients in (None, len({row.patient_id for row in table.rows}))
    assert table.notes == notes
    assert {row.view for row in table.rows} <= {View.PA, View.AP}
    assert all(row.age is not None and 0 <= row.age <= 100 for row in table.rows) is not bool(notes)


def test_nih_row_is_known_in_full(nih_folder: Callable[..., Path]) -> None:
    folder = nih_folder(
        *("Data_Entry_2017_v2020.head2000.csv", "BBox_List_2017.csv"),
        *("train_val_list.txt.gz", "test_list.txt.gz"),
    )
    table = read_nih_table(folder, IngestConfig())
    rows = {row.image_id: row for row in table.rows}
    first = rows["00000001_001.png"]
    assert (first.patient_id, first.age, first.sex) == ("00000001", 58, "M")
    assert (first.view, first.split) == (View.PA, Split.TRAIN)
    assert [name for name, label in first.labels.items() if label] == ["Cardiomegaly", "Emphysema"]
    assert first.extent_mm == pytest.approx((2729 * 0.143, 2894 * 0.143))
    assert sum(first.labels.values()) == 2
    assert table.box_frame == (1024, 1024)
    assert sum(len(row.boxes) for row in table.rows) > 0


def test_both_editions_of_nih_agree_on_a_patient(
    nih_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = nih_folder("Data_Entry_2017_v2020.head2000.csv")
    new = {row.image_id: row for row in read_nih_table(folder, IngestConfig()).rows}
    (folder / "Data_Entry_2017_v2020.head2000.csv").unlink()
    old = read_nih_table(nih_folder("Data_Entry_2017.old_format.head.csv"), IngestConfig())
    for row in old.rows:
        assert (row.patient_id, row.labels) == (new[row.image_id].patient_id, row.labels)
        assert row.extent_mm == pytest.approx(new[row.image_id].extent_mm)


@pytest.mark.parametrize("name", ["BBox_List_2017.csv", "BBox_List_2017.variant_rounded_crlf.csv"])
def test_nih_boxes_are_read_completely(shared_data: Path, name: str) -> None:
    boxes = read_boxes(shared_data / "nih_csv" / name)
    assert len(boxes) == 880
    assert Counter(item.finding for found in boxes.values() for item in found) == {
        **{"Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123},
        **{"Pneumonia": 120, "Pneumothorax": 98, "Mass": 85, "Nodule": 79},
    }
    first = boxes["00013118_008.png"][0].box
    assert (first.left, first.top) == pytest.approx((225.0847, 547.0192), abs=1e-3)
    assert (first.right, first.bottom) == pytest.approx((311.8644, 626.2057), abs=1e-3)


def test_official_nih_lists_are_read_completely(shared_data: Path) -> None:
    splits = read_split_lists(shared_data / "nih_csv")
    assert Counter(splits.values()) == {Split.TRAIN: 86_524, Split.TEST: 25_596}
    boxes = read_boxes(shared_data / "nih_csv" / "BBox_List_2017.csv")
    assert {splits[name] for name in boxes} == {Split.TEST}


def test_one_official_list_without_the_other_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_list.txt").write_text("a.png")
    with pytest.raises(LabelTableError, match=r"only test_list\.txt is there"):
        read_split_lists(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"a.png\n" * 99, mtime=0)[:-9]],
    ids=["no gzip", "cut short"],
)
def test_damaged_official_list_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_list.txt.gz").write_bytes(content)
    with pytest.raises(
        LabelTableError, match=r"test_list\.txt\.gz is not UTF-8 text or not a complete"
    ):
        read_split_lists(tmp_path)
    (tmp_path / "test_list.txt.gz").unlink()
    (tmp_path / "test_list.txt").write_bytes("ä.png".encode("utf-16"))
    with pytest.raises(LabelTableError, match=r"test_list\.txt is not UTF-8"):
        read_split_lists(tmp_path)


def test_image_in_both_official_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train_val_list.txt").write_text("a.png\nb.png")
    with gzip.open(tmp_path / "test_list.txt.gz", "wt") as stream:
        stream.write("b.png")
    with pytest.raises(LabelTableError, match="share an image"):
        read_split_lists(tmp_path)


def test_image_in_neither_official_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("Image Index,Finding Labels,Patient ID\na.png,Mass,1\nb.png,,1")
    (tmp_path / "train_val_list.txt").write_text("a.png")
    (tmp_path / "test_list.txt").write_text("c.png")
    with pytest.raises(LabelTableError, match=r"1 images of e\.csv are in neither.*'b\.png'"):
        read_nih_table(tmp_path, IngestConfig())


def test_findings_restrict_and_order_the_columns(nih_folder: Callable[..., Path]) -> None:
    folder = nih_folder("Data_Entry_2017.old_format.head.csv")
    table = read_nih_table(folder, IngestConfig(findings=("Mass", "infiltrate")))
    assert table.findings == ("Mass", "Infiltration")
    with pytest.raises(LabelTableError, match="no label for Fracture"):
        read_nih_table(folder, IngestConfig(findings=("Fracture",)))


RSNA = "patientId,x,y,width,height,Target\na,,,,,0\nb,10,20,30,40,1\nb,50,60,7,8,1\n"


def test_rsna_boxes_gather_by_image(tmp_path: Path) -> None:
    (tmp_path / "stage_2_train_labels.csv").write_text(RSNA)
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\na,No Lung Opacity / Not Normal\nb,Lung Opacity\n"
    )
    table = read_rsna_table(tmp_path, IngestConfig())
    normal, pneumonia = table.rows
    assert (normal.file, normal.labels, normal.boxes) == ("a.dcm", {"Pneumonia": 0.0}, ())
    assert [item.box for item in pneumonia.boxes] == [Box(20, 10, 60, 40), Box(60, 50, 68, 57)]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (RSNA + "a,1,2,3,4,1\n", "", "row 5: the image has Target 0 and 1"),
        (RSNA + "c,,,,,1\n", "", "row 5: Target is 1 without a box"),
        (RSNA + "c,,,,,2\n", "", "row 5: Target is '2'"),
        (RSNA, "patientId,class\nb,Normal\n", "class is 'Normal', but Target says otherwise"),
    ],
)
def test_rsna_tables_that_contradict_themselves_are_refused(
    tmp_path: Path, labels: str, classes: str, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(labels)
    if classes:
        (tmp_path / "classes.csv").write_text(classes)
    with pytest.raises(LabelTableError, match=message):
        read_rsna_table(tmp_path, IngestConfig())
