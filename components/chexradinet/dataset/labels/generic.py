"""The project's own table: `labels.csv` beside or above the images.

| column | content |
|---|---|
| `file` | path relative to the table's folder, or a bare name |
| `patient` | any id that is equal for all X-rays of one patient |
| `findings` | names joined by a vertical bar; `No Finding`; empty: not known |
| `study`, `view`, `age`, `sex`, `split` | optional; `view` is PA, AP or empty, `age` years |
| `boxes` | optional JSON list of `{finding, top, left, bottom, right}` in pixels of the file |

A finding that a row does not name is absent, unless its `findings` cell is empty.
"""

from collections import Counter
from pathlib import Path, PurePosixPath

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels.cells import (
    LabelMappings,
    noted_age,
    ordered,
    parse_boxes,
    parse_findings,
    parse_sex,
    parse_split,
    parse_view,
)
from chexradinet.dataset.labels.table import (
    LabelTable,
    Line,
    TableRow,
    each_once,
    read_lines,
    the_table,
)
from chexradinet.errors import LabelTableError
from chexradinet.findings import KNOWN_FINDINGS, Vocabulary

COLUMNS = ("file", "patient", "findings")


def read_generic_table(folder: Path, config: IngestConfig) -> LabelTable:
    """Read the only table of a folder that has the columns `file`, `patient` and `findings`.

    Args:
        folder: Holds the table.
        config: Its findings are the table's; without them, all that a row names.

    Raises:
        SourceError: there is no such table, or more than one.
        LabelTableError: the table is damaged, or no row names a finding.
    """
    path = the_table(folder, COLUMNS, "label table")
    # Read twice rather than kept: a table may have a million rows.
    vocabulary = config.vocabulary
    named = {
        finding
        for line in read_lines(path, COLUMNS)
        for finding in parse_findings(line, line["findings"], vocabulary)
    }
    findings = config.finding_names or ordered(named, KNOWN_FINDINGS)
    unnamed = [name for name in findings if name not in (*named, *KNOWN_FINDINGS)]
    if unnamed:
        raise LabelTableError(
            f"no row of {path.name} names {', '.join(unnamed)}; correct the setting findings"
        )
    if not findings:
        raise LabelTableError(
            f"no row of {path.name} names a finding; fill its column findings, or name the "
            "findings that are absent everywhere"
        )
    mappings = LabelMappings(findings)
    notes: Counter[str] = Counter()
    lines = read_lines(path, COLUMNS)
    rows = each_once(path.name, (_row(line, mappings, notes, vocabulary) for line in lines))
    return LabelTable(name=path.name, findings=findings, rows=rows, notes=dict(notes))


def _row(
    line: Line, mappings: LabelMappings, notes: Counter[str], vocabulary: Vocabulary
) -> TableRow:
    if not line["file"] or not line["patient"]:
        raise LabelTableError(f"{line.place} has no file or no patient; both are needed")
    for column in ("study", "view", "age", "sex", "split"):
        if vocabulary.names(line.get(column)):
            raise LabelTableError(
                f"{line.place}: {column} is {line[column]!r}, the name of a finding; join several "
                "findings by |, or put them in quotes"
            )
    file = PurePosixPath(line["file"].replace("\\", "/")).as_posix()
    view, rejected = parse_view(line.get("view"))
    positives = parse_findings(line, line["findings"], vocabulary)
    return TableRow(
        file=file,
        image_id=file,
        patient_id=line["patient"],
        study_id=line.get("study"),
        view=view,
        age=noted_age(line.get("age"), notes),
        sex=parse_sex(line.get("sex")),
        split=parse_split(line, line.get("split")),
        labels=mappings.of_positives(positives) if line["findings"] else mappings.of_unknown(),
        boxes=parse_boxes(line, line.get("boxes"), vocabulary),
        rejected=rejected,
    )
