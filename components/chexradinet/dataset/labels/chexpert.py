"""CheXpert and MIMIC-CXR-JPG, which share their findings and their label columns.

CheXpert: `train.csv`, `valid.csv` and, if there is one, a table of the test labels under its own
name or one that they are published under; such tables have paths and labels only. Images lie in
folders `train`, `valid` and `test`, or in the batches that are downloaded, whose training images
are in no folder `train`. Lateral views are rejected. With test labels the three tables are the
three splits; without, `valid.csv`, which radiologists labelled, is the test split and validation is
taken from the training patients. A finding that the report does not mention (an empty cell) is
absent.

MIMIC-CXR-JPG: labels by study, metadata and split by image, joined. A view comes from
`ViewPosition`, else from the view code's meaning; an image without either is rejected with the
laterals, because a third of the collection is lateral.

Source: Irvin et al. 2019, arXiv:1901.07031; Johnson et al. 2019, arXiv:1901.07042.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from chexradinet.config import IngestConfig, UncertainLabel, parse_uncertain
from chexradinet.dataset.labels import (
    LabelTable,
    Line,
    TableRow,
    column_key,
    each_once,
    list_tables,
    read_lines,
)
from chexradinet.dataset.labels.generic import (
    LabelMappings,
    certain,
    noted_age,
    parse_sex,
    parse_split,
    parse_view,
    view_position,
)
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.findings import CHEXPERT_FINDINGS
from chexradinet.records import RejectReason, Split, View

COLUMN_NAMES = {"Effusion": "Pleural Effusion"}
"""Columns that are not the canonical name with spaces."""

LABEL_COLUMNS = {
    finding: column_key(COLUMN_NAMES.get(finding, finding)) for finding in CHEXPERT_FINDINGS
}
"""Column key of each finding."""
_TEST_TABLES = ("test.csv", "test_labels.csv", "groundtruth.csv")
"""What the test labels are called: in copies, with CheXlocalize, in their own repository."""

Value = TypeVar("Value")


def read_chexpert_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read the tables of CheXpert in a folder.

    Args:
        folder: Holds `train.csv` and `valid.csv`.
        config: Its findings restrict and order the 13; its policy says what -1 becomes.

    Raises:
        SourceError: a table is missing.
        LabelTableError: a table is damaged.
    """
    parts = _chexpert_parts(folder)
    policy = parse_uncertain(config.uncertain_labels)
    mappings = LabelMappings(CHEXPERT_FINDINGS)
    notes: Counter[str] = Counter()
    name = ", ".join(parts)
    rows = each_once(
        name,
        (
            _chexpert_row(line, split, mappings.of_values(_labels_of(line, policy)), notes)
            for part, split in parts.items()
            for line in read_lines(folder / part, ("path", *LABEL_COLUMNS.values()))
        ),
    )
    table = LabelTable(name=name, findings=CHEXPERT_FINDINGS, rows=rows, notes=dict(notes))
    return table.restricted(config.finding_names)


def _chexpert_parts(folder: Path) -> dict[str, Split]:
    missing = [name for name in ("train.csv", "valid.csv") if not (folder / name).is_file()]
    if missing:
        raise SourceError(
            f"{' and '.join(missing)} missing in {folder}; both are needed: the download has them "
            "in the folder of batch 1; give it as the folder of the labels"
        )
    test = [name for name in _TEST_TABLES if (folder / name).is_file()]
    if len(test) > 1:
        raise SourceError(f"{' and '.join(test)} in {folder} are both test labels; keep one")
    if not test:
        return {"train.csv": Split.TRAIN, "valid.csv": Split.TEST}
    return {"train.csv": Split.TRAIN, "valid.csv": Split.VALIDATION, test[0]: Split.TEST}


def _labels_of(
    line: Line, policy: tuple[UncertainLabel, Mapping[str, UncertainLabel]]
) -> list[float]:
    """Return the labels of a row in the order of `CHEXPERT_FINDINGS`."""
    return [certain(line, finding, line[key], policy) for finding, key in LABEL_COLUMNS.items()]


def _chexpert_row(
    line: Line, split: Split, labels: Mapping[str, float], notes: Counter[str]
) -> TableRow:
    # CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg; the first part varies.
    file = "/".join(PurePosixPath(line["path"]).parts[-4:])
    patient, _, _ = file.partition("/study")
    if patient == file:
        raise LabelTableError(
            f"{line.place}: the path names no study; it must end in patient/study/view"
        )
    # Tables of test labels do not tell, but names of files do.
    view_words = line.get("frontallateral") or PurePosixPath(file).stem
    lateral = "lateral" in view_words.casefold()
    view, rejected = parse_view(line.get("appa"))
    return TableRow(
        file=file,
        other_file="/".join(PurePosixPath(file).parts[-3:]),
        image_id=file,
        patient_id=PurePosixPath(patient).name,
        study_id=str(PurePosixPath(file).parent),
        view=view,
        age=noted_age(line.get("age"), notes),
        sex=parse_sex(line.get("sex")),
        split=split,
        labels=labels,
        rejected=RejectReason.NOT_FRONTAL if lateral else rejected,
    )


def read_mimic_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read the tables of MIMIC-CXR-JPG in a folder.

    Args:
        folder: Holds `mimic-cxr-<version>-metadata.csv`, `-split.csv` and `-chexpert.csv` (or,
            without it, `-negbio.csv`), each also as `.gz`.
        config: Its findings restrict and order the 13; its policy says what -1 becomes.

    Raises:
        SourceError: a table is missing.
        LabelTableError: a table is damaged, or an image has no official split.
    """
    labelled = _mimic_table(folder, "chexpert", "negbio")
    studies = _studies(labelled, config)
    splits = _by_name(
        (line, line["dicomid"], parse_split(line, line["split"]))
        for line in read_lines(_mimic_table(folder, "split"), ("dicomid", "split"))
    )
    nothing = LabelMappings(CHEXPERT_FINDINGS).of_unknown()
    columns = ("dicomid", "subjectid", "studyid")
    metadata = _mimic_table(folder, "metadata")
    rows = each_once(
        metadata.name,
        (
            _mimic_row(line, studies.get(line["studyid"]), splits, nothing)
            for line in read_lines(metadata, columns)
        ),
    )
    table = LabelTable(name=labelled.name, findings=CHEXPERT_FINDINGS, rows=rows)
    return table.restricted(config.finding_names)


def _mimic_table(folder: Path, *kinds: str) -> Path:
    paths = list_tables(folder)
    for kind in kinds:
        for path in paths:
            stem = path.name.removesuffix(".gz").removesuffix(".csv")
            if stem.startswith("mimic-cxr") and stem.endswith(f"-{kind}"):
                return path
    raise SourceError(
        f"{folder} has no mimic-cxr-...-{kinds[0]}.csv or .csv.gz; download it with the images"
    )


def _studies(path: Path, config: IngestConfig) -> dict[str, Mapping[str, float]]:
    policy = parse_uncertain(config.uncertain_labels)
    mappings = LabelMappings(CHEXPERT_FINDINGS)
    return _by_name(
        (line, line["studyid"], mappings.of_values(_labels_of(line, policy)))
        for line in read_lines(path, ("studyid", *LABEL_COLUMNS.values()))
    )


def _by_name(cells: Iterable[tuple[Line, str, Value]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for line, name, value in cells:
        if name in found:
            raise LabelTableError(f"{line.place} names {name!r} again; keep one row of it")
        found[name] = value
    return found


def _mimic_row(
    line: Line,
    labels: Mapping[str, float] | None,
    splits: Mapping[str, Split | None],
    nothing: Mapping[str, float],
) -> TableRow:
    image, subject, study = line["dicomid"], line["subjectid"], line["studyid"]
    if splits.get(image) is None:
        raise LabelTableError(
            f"{line.place}: the image has no official split; use the tables of one release"
        )
    view, rejected = _mimic_view(line)
    return TableRow(
        file=f"p{subject[:2]}/p{subject}/s{study}/{image}.jpg",
        image_id=image,
        patient_id=subject,
        study_id=study,
        view=view,
        split=splits[image],
        labels=nothing if labels is None else labels,
        rejected=RejectReason.NOT_LABELLED if labels is None else rejected,
    )


def _mimic_view(line: Line) -> tuple[View, RejectReason | None]:
    view, rejected = parse_view(line.get("viewposition"))
    if view is View.UNKNOWN and rejected is None:
        view, _ = view_position(line.get("viewcodesequencecodemeaning"))
        rejected = RejectReason.NOT_FRONTAL if view is View.UNKNOWN else None
    return view, rejected
