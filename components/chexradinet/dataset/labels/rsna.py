"""RSNA Pneumonia Detection Challenge: labels, a row a box, and the class of each image.

`Target` 1 is a lung opacity that the readers held for pneumonia: it becomes `Pneumonia`. No
official split has labels, and `patientId` names an exposure, not a person: one person's exposures
can fall into two splits, and the published tables do not tell.

Source: Shih et al. 2019, doi 10.1148/ryai.2019180041.
"""

from pathlib import Path

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels.cells import LabelMappings
from chexradinet.dataset.labels.table import (
    LabelTable,
    Line,
    TableRow,
    find_tables,
    read_lines,
    the_table,
    with_box,
)
from chexradinet.errors import ConfigError, LabelTableError
from chexradinet.records import Box, LabelledBox

FINDINGS = ("Pneumonia",)
COLUMNS = ("patientid", "x", "y", "width", "height", "target")
_CLASSES = ("patientid", "class")
_POSITIVE_CLASS = "lung opacity"


def read_rsna_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read `stage_2_train_labels.csv` and, if present, `stage_2_detailed_class_info.csv`.

    Args:
        folder: Holds the tables; the images are DICOM files named by `patientId`.
        config: Its findings may only be `Pneumonia`.

    Raises:
        SourceError: there is no label table, or more than one.
        LabelTableError: a table is damaged, or the two contradict each other.
    """
    path = the_table(folder, COLUMNS, "RSNA label table")
    targets: dict[str, bool] = {}
    boxes: dict[str, tuple[LabelledBox, ...]] = {}
    for line in read_lines(path, COLUMNS):
        name, positive = line["patientid"], _target(line)
        if targets.setdefault(name, positive) is not positive:
            raise LabelTableError(f"{line.place}: the image has Target 0 and 1; keep one")
        if positive:
            boxes[name] = with_box(line, boxes.get(name, ()), _box(line))
    _check_classes(folder, targets)
    mappings = LabelMappings(FINDINGS)
    rows = tuple(
        TableRow(
            file=f"{name}.dcm",
            image_id=name,
            patient_id=name,
            labels=mappings.of_values([float(positive)]),
            boxes=boxes.get(name, ()),
        )
        for name, positive in targets.items()
    )
    return LabelTable(name=path.name, findings=FINDINGS, rows=rows).restricted(config.finding_names)


def _target(line: Line) -> bool:
    if line["target"] not in ("0", "1"):
        raise LabelTableError(f"{line.place}: Target is {line['target']!r}; it must be 0 or 1")
    return line["target"] == "1"


def _box(line: Line) -> LabelledBox:
    try:
        left, top, width, height = (float(line[name]) for name in ("x", "y", "width", "height"))
        return LabelledBox(FINDINGS[0], Box(top, left, top + height, left + width))
    except (ValueError, ConfigError) as error:
        raise LabelTableError(f"{line.place}: Target is 1 without a box; fix the row") from error


def _check_classes(folder: Path, targets: dict[str, bool]) -> None:
    for path in find_tables(folder, _CLASSES):
        for line in read_lines(path, _CLASSES):
            positive = line["class"].casefold() == _POSITIVE_CLASS
            if targets.get(line["patientid"], positive) is not positive:
                raise LabelTableError(
                    f"{line.place}: class is {line['class']!r}, but Target says otherwise; use the "
                    "tables of one stage"
                )
