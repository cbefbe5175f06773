"""MIMIC-CXR-JPG: labels by study, metadata and split by image, joined.

A view comes from `ViewPosition`, else from the view code's meaning; an image without either is
rejected with the laterals, because a third of the collection is lateral.

Source: Johnson et al. 2019, arXiv:1901.07042.
"""

from collections.abc import Mapping
from pathlib import Path

from chexradinet.config import IngestConfig, parse_uncertain
from chexradinet.dataset.labels.cells import LabelMappings, parse_split, parse_view
from chexradinet.dataset.labels.chexpert import LABEL_COLUMNS, labels_of
from chexradinet.dataset.labels.table import LabelTable, Line, TableRow, list_tables, read_lines
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.findings import CHEXPERT_FINDINGS
from chexradinet.records import RejectReason, Split, View

_VIEW_CODES = {
    "postero-anterior": View.PA,
    "antero-posterior": View.AP,
}


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
    labelled = _table(folder, "chexpert", "negbio")
    studies = _studies(labelled, config)
    splits = {
        line["dicomid"]: parse_split(line, line["split"])
        for line in read_lines(_table(folder, "split"), ("dicomid", "split"))
    }
    nothing = LabelMappings(CHEXPERT_FINDINGS).of_unknown()
    columns = ("dicomid", "subjectid", "studyid")
    rows = tuple(
        _row(line, studies.get(line["studyid"]), splits, nothing)
        for line in read_lines(_table(folder, "metadata"), columns)
    )
    table = LabelTable(name=labelled.name, findings=CHEXPERT_FINDINGS, rows=rows)
    return table.restricted(config.findings)


def _table(folder: Path, *kinds: str) -> Path:
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
    policy = parse_uncertain(config.uncertain)
    mappings = LabelMappings(CHEXPERT_FINDINGS)
    return {
        line["studyid"]: mappings.of_values(labels_of(line, policy))
        for line in read_lines(path, ("studyid", *LABEL_COLUMNS.values()))
    }


def _row(
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
    view, rejected = _view(line)
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


def _view(line: Line) -> tuple[View, RejectReason | None]:
    view, rejected = parse_view(line.get("viewposition"))
    if view is View.UNKNOWN and rejected is None:
        view = _VIEW_CODES.get(line.get("viewcodesequencecodemeaning").casefold(), View.UNKNOWN)
        rejected = RejectReason.NOT_FRONTAL if view is View.UNKNOWN else None
    return view, rejected
