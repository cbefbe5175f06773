from pathlib import Path

import pytest

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels.rsna import read_rsna_table
from chexradinet.errors import LabelTableError
from chexradinet.records import Box

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
