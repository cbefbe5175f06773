"""CheXpert: `train.csv`, `valid.csv` and, where there is one, `test.csv`.

Lateral views are rejected. Splits: with `test.csv` the three files are the three splits; without
it, `valid.csv`, which radiologists labelled, is the test split and validation is taken from the
training patients. A finding that the report does not mention (an empty cell) is absent.

Source: Irvin et al. 2019, arXiv:1901.07031.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from chexradinet.config import IngestConfig, UncertainLabel, parse_uncertain
from chexradinet.dataset.labels.cells import (
    LabelMappings,
    certain,
    noted_age,
    parse_sex,
    parse_view,
)
from chexradinet.dataset.labels.table import LabelTable, Line, TableRow, column_key, read_lines
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.findings import CHEXPERT_FINDINGS
from chexradinet.records import RejectReason, Split

COLUMN_NAMES = {"Effusion": "Pleural Effusion"}
"""Columns that are not the canonical name with spaces."""

LABEL_COLUMNS = {
    finding: column_key(COLUMN_NAMES.get(finding, finding)) for finding in CHEXPERT_FINDINGS
}
"""Column key of each finding, here and in MIMIC-CXR."""


def read_chexpert_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read the tables of CheXpert in a folder.

    Args:
        folder: Holds `train.csv` and `valid.csv`.
        config: Its findings restrict and order the 13; its policy says what -1 becomes.

    Raises:
        SourceError: a table is missing.
        LabelTableError: a table is damaged.
    """
    missing = [name for name in ("train.csv", "valid.csv") if not (folder / name).is_file()]
    if missing:
        raise SourceError(f"{' and '.join(missing)} missing in {folder}; needed are both")
    parts = {"train.csv": Split.TRAIN, "valid.csv": Split.TEST}
    if (folder / "test.csv").is_file():
        parts = {**parts, "valid.csv": Split.VALIDATION, "test.csv": Split.TEST}
    policy = parse_uncertain(config.uncertain)
    mappings = LabelMappings(CHEXPERT_FINDINGS)
    notes: Counter[str] = Counter()
    rows = tuple(
        _row(line, split, mappings.of_values(labels_of(line, policy)), notes)
        for name, split in parts.items()
        for line in read_lines(folder / name, ("path", *LABEL_COLUMNS.values()))
    )
    table = LabelTable(
        name=", ".join(parts), findings=CHEXPERT_FINDINGS, rows=rows, notes=dict(notes)
    )
    return table.restricted(config.findings)


def labels_of(
    line: Line, policy: tuple[UncertainLabel, Mapping[str, UncertainLabel]]
) -> list[float]:
    """Return the labels of a row in the order of `CHEXPERT_FINDINGS`; MIMIC-CXR has the same."""
    return [certain(line, finding, line[key], policy) for finding, key in LABEL_COLUMNS.items()]


def _row(line: Line, split: Split, labels: Mapping[str, float], notes: Counter[str]) -> TableRow:
    # CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg; the first part varies.
    file = "/".join(PurePosixPath(line["path"]).parts[-4:])
    patient, _, _ = file.partition("/study")
    if patient == file:
        raise LabelTableError(
            f"{line.place}: the path names no study; it must end in patient/study/view"
        )
    lateral = line.get("frontallateral").casefold() == "lateral"
    view, rejected = parse_view(line.get("appa"))
    return TableRow(
        file=file,
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
