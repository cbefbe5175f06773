"""NIH ChestX-ray14, as downloaded, and the labels that RSNA gave a part of its images.

NIH: read are both editions of `Data_Entry_2017`, the sample published with padded ids and ages such
as `060Y`, and a variant with underscored columns; `BBox_List_2017.csv` with or without its trailing
commas; `train_val_list.txt` and `test_list.txt`, also compressed. Columns tell the tables apart.

RSNA Pneumonia Detection Challenge: one row per box, and the class of each image. `Target` 1 is a
lung opacity that the readers held for pneumonia: it becomes `Pneumonia`. No official split has
labels, and `patientId` names an exposure, not a person: one person's exposures can fall into two
splits, and the published tables do not tell.

Source: Wang et al. 2017, arXiv:1705.02315; Shih et al. 2019, doi 10.1148/ryai.2019180041.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels import (
    NO_TEXT,
    LabelTable,
    Line,
    TableRow,
    bounded_lines,
    each_once,
    find_tables,
    open_text,
    read_lines,
    the_table,
    with_box,
)
from chexradinet.dataset.labels.generic import (
    LabelMappings,
    finding_at,
    noted_age,
    parse_findings,
    parse_sex,
    parse_view,
)
from chexradinet.errors import ConfigError, LabelTableError, SourceError
from chexradinet.findings import NIH_FINDINGS
from chexradinet.records import Box, LabelledBox, Split

BOX_FRAME = (1024, 1024)
"""Boxes are in pixels of the published 1024x1024 images, whatever the size of a copy."""

COLUMNS = ("imageindex", "findinglabels", "patientid")
_BOXES = ("imageindex", "findinglabel", "bboxx", "y", "w", "h")
_LISTS = {"train_val_list.txt": Split.TRAIN, "test_list.txt": Split.TEST}
RSNA_FINDINGS = ("Pneumonia",)
RSNA_COLUMNS = ("patientid", "x", "y", "width", "height", "target")
_RSNA_CLASSES = ("patientid", "class")
_RSNA_POSITIVE = "lung opacity"


def read_nih_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read the tables of NIH ChestX-ray14 in a folder.

    Args:
        folder: Holds one entry table, at most one box table, and both split lists or neither.
        config: Its findings restrict and order the 14.

    Raises:
        SourceError: there is no entry table, or more than one.
        LabelTableError: a table is damaged or contradicts another.
    """
    path = the_table(folder, COLUMNS, "NIH entry table")
    splits = read_split_lists(folder)
    boxes = _all_boxes(folder)
    notes: Counter[str] = Counter()
    mappings = LabelMappings(NIH_FINDINGS)
    lines = read_lines(path, COLUMNS)
    rows = each_once(path.name, (_row(line, splits, boxes, mappings, notes) for line in lines))
    _check_lists(path.name, rows, splits)
    table = LabelTable(
        name=path.name, findings=NIH_FINDINGS, rows=rows, box_frame=BOX_FRAME, notes=dict(notes)
    )
    return table.restricted(config.finding_names)


def _row(
    line: Line,
    splits: Mapping[str, Split],
    boxes: Mapping[str, tuple[LabelledBox, ...]],
    mappings: LabelMappings,
    notes: Counter[str],
) -> TableRow:
    name = line["imageindex"]
    view, rejected = parse_view(line.get("viewposition"))
    patient = line["patientid"]
    return TableRow(
        file=name,
        image_id=name,
        # Editions differ in padding; image names carry the padded form.
        patient_id=patient.zfill(8) if patient.isdigit() else patient,
        view=view,
        age=noted_age(line.get("patientage"), notes),
        sex=parse_sex(line.get("patientgender")),
        split=splits.get(name),
        labels=mappings.of_positives(parse_findings(line, line["findinglabels"])),
        boxes=boxes.get(name, ()),
        extent_mm=_extent(line),
        rejected=rejected,
    )


def _extent(line: Line) -> tuple[float, float] | None:
    try:
        height = float(line.get("originalimageheight", "height"))
        width = float(line.get("originalimagewidth"))
        across = float(line.get("originalimagepixelspacingx"))
        down = float(line.get("originalimagepixelspacingy", "y"))
    except ValueError:
        return None
    return (height * down, width * across) if min(height, width, across, down) > 0 else None


def _all_boxes(folder: Path) -> dict[str, tuple[LabelledBox, ...]]:
    paths = find_tables(folder, _BOXES)
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise LabelTableError(f"{len(paths)} box tables ({names}); keep one")
    return read_boxes(paths[0]) if paths else {}


def read_boxes(path: Path) -> dict[str, tuple[LabelledBox, ...]]:
    """Read a box table: boxes by image name, in pixels of the 1024x1024 image.

    Raises:
        LabelTableError: a row holds no box.
    """
    boxes: defaultdict[str, tuple[LabelledBox, ...]] = defaultdict(tuple)
    for line in read_lines(path, _BOXES):
        try:
            left, top, width, height = (float(line[name]) for name in _BOXES[2:])
            box = Box(top, left, top + height, left + width)
        except (ValueError, ConfigError) as error:
            raise LabelTableError(f"{line.place} holds no box: {error}; fix the row") from error
        labelled = LabelledBox(finding_at(line, line["findinglabel"]), box)
        name = line["imageindex"]
        boxes[name] = with_box(line, boxes[name], labelled)
    return dict(boxes)


def read_split_lists(folder: Path) -> dict[str, Split]:
    """Read the official split: image name to split; empty if the folder has no list.

    Raises:
        LabelTableError: only one list is there, it is damaged, or an image is in both.
        SourceError: a list cannot be read.
    """
    splits: dict[str, Split] = {}
    found = []
    for name, split in _LISTS.items():
        for path in (folder / name, folder / f"{name}.gz"):
            if not path.is_file():
                continue
            names = _names_in(path)
            if any(splits.get(image, split) is not split for image in names):
                raise LabelTableError(f"{path.name} and its counterpart share an image; fix them")
            splits |= dict.fromkeys(names, split)
            found.append(name)
            break
    if len(found) == 1:
        raise LabelTableError(f"of the official lists only {found[0]} is there; add or remove one")
    return splits


def _names_in(path: Path) -> set[str]:
    try:
        with open_text(path) as stream:
            return {line.strip() for line in bounded_lines(stream, path)} - {""}
    except NO_TEXT as error:
        raise LabelTableError(
            f"{path.name} is not UTF-8 text or not a complete gzip file ({type(error).__name__}); "
            "download it again"
        ) from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its rights") from error


def _check_lists(table: str, rows: tuple[TableRow, ...], splits: Mapping[str, Split]) -> None:
    outside = [row.image_id for row in rows if row.split is None]
    if splits and outside:
        raise LabelTableError(
            f"{len(outside)} images of {table} are in neither official list, the first is "
            f"{outside[0]!r}; use the lists of the same release, or remove both"
        )


def read_rsna_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read `stage_2_train_labels.csv` and, if present, `stage_2_detailed_class_info.csv`.

    Args:
        folder: Holds the tables; the images are DICOM files named by `patientId`.
        config: Its findings may only be `Pneumonia`.

    Raises:
        SourceError: there is no label table, or more than one.
        LabelTableError: a table is damaged, or the two contradict each other.
    """
    path = the_table(folder, RSNA_COLUMNS, "RSNA label table")
    targets: dict[str, bool] = {}
    boxes: dict[str, tuple[LabelledBox, ...]] = {}
    for line in read_lines(path, RSNA_COLUMNS):
        name, positive = line["patientid"], _target(line)
        if targets.setdefault(name, positive) is not positive:
            raise LabelTableError(f"{line.place}: the image has Target 0 and 1; keep one")
        if positive:
            boxes[name] = with_box(line, boxes.get(name, ()), _rsna_box(line))
    _check_classes(folder, targets)
    mappings = LabelMappings(RSNA_FINDINGS)
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
    return LabelTable(name=path.name, findings=RSNA_FINDINGS, rows=rows).restricted(
        config.finding_names
    )


def _target(line: Line) -> bool:
    if line["target"] not in ("0", "1"):
        raise LabelTableError(f"{line.place}: Target is {line['target']!r}; it must be 0 or 1")
    return line["target"] == "1"


def _rsna_box(line: Line) -> LabelledBox:
    try:
        left, top, width, height = (float(line[name]) for name in ("x", "y", "width", "height"))
        return LabelledBox(RSNA_FINDINGS[0], Box(top, left, top + height, left + width))
    except (ValueError, ConfigError) as error:
        raise LabelTableError(f"{line.place}: Target is 1 without a box; fix the row") from error


def _check_classes(folder: Path, targets: dict[str, bool]) -> None:
    for path in find_tables(folder, _RSNA_CLASSES):
        for line in read_lines(path, _RSNA_CLASSES):
            positive = line["class"].casefold() == _RSNA_POSITIVE
            if targets.get(line["patientid"], positive) is not positive:
                raise LabelTableError(
                    f"{line.place}: class is {line['class']!r}, but Target says otherwise; use the "
                    "tables of one stage"
                )
