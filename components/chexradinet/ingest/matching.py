"""What is to be decoded, in which order, and which row of the label table means which file.

If a table is the convention, its rows are the plan. DICOM files stand for themselves: they come
in the order of their names, and a row says something about one of them, by its file name or by its
SOP Instance UID, which only the file's header tells.

Tables name files in their own way: NIH by the bare name, wherever the archives were unpacked;
CheXpert by a path that starts above the folder; ours by the path from the table. A file is meant
when one of the two paths ends in the other, whole names compared; a path that is the same from end
to end goes first. Copies of the public data sets come in other formats: if no file has the name,
the only one that differs in nothing but its suffix is meant.
"""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from chexradinet.config import IngestConfig, SourceFormat
from chexradinet.dataset import Rejection
from chexradinet.dataset.deidentification import DeidentificationKey, coded
from chexradinet.dataset.labels import (
    LabelTable,
    TableRow,
    find_tables,
    generic,
    list_tables,
    nih,
)
from chexradinet.dataset.labels.chexpert import read_chexpert_table, read_mimic_table
from chexradinet.dataset.writing import assign_splits
from chexradinet.errors import LabelTableError, SourceError
from chexradinet.ingest import IMAGE_SUFFIXES, KINDS_READ, PICTURE_SUFFIXES, is_document
from chexradinet.records import RejectReason

_TABLES: Mapping[SourceFormat, Callable[[Path, IngestConfig], LabelTable]] = {
    SourceFormat.NIH: nih.read_nih_table,
    SourceFormat.CHEXPERT: read_chexpert_table,
    SourceFormat.MIMIC: read_mimic_table,
    SourceFormat.RSNA: nih.read_rsna_table,
    SourceFormat.CSV: generic.read_generic_table,
    SourceFormat.DICOM: generic.read_generic_table,
}
"""What reads the tables of each convention."""

_OTHER_KIND = f"kind not read; {KINDS_READ}"

FilesByName = Mapping[str, list[str]]
"""Files of a source, in order, by their bare name in Unicode's composed form."""

_SUFFIXES = (*IMAGE_SUFFIXES, ".ima", ".tif", ".tiff", ".bmp", ".gif", ".webp")
"""Suffixes of image files, including kinds that are not read."""
_UID = re.compile(r"[0-9.]+")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be decoded, and what is rejected without."""

    files: tuple[str, ...]
    """Files to decode, in order."""
    rows: tuple[TableRow | None, ...]
    """The row of each file; None if the header has to tell which it is, if any."""
    rejections: tuple[Rejection, ...]
    """With names as the source has them."""
    num_inputs: int
    """Files, and rows that no file is known for: each must come out once."""
    unmatched: Mapping[str, TableRow] = field(default_factory=dict)
    """Rows that may name a SOP Instance UID, by its code."""
    needs_row: bool = True
    """Whether a file without a row is rejected."""
    num_ignored: int = 0
    """Files of other kinds that no row names and that are not documents."""


def read_table(folder: Path, config: IngestConfig) -> LabelTable | None:
    """Read the label table of a source; None for DICOM files that have no CSV file beside them.

    Raises:
        SourceError: there is none, or more than one.
        LabelTableError: it is damaged or contradicts itself.
    """
    if config.data_format is SourceFormat.DICOM and not list_tables(folder):
        return None
    try:
        return _TABLES[config.data_format](folder, config)
    except SourceError as error:
        likely = [kind.value for kind in _formats_of(folder) if kind is not config.data_format]
        if config.data_format is SourceFormat.DICOM or not likely:
            raise
        raise SourceError(
            f"{error}; the tables look like data_format={likely[0]}: give that, or auto"
        ) from error


def detect_format(folder: Path, files: Iterable[str]) -> SourceFormat:
    """Return the convention of a source by the tables in a folder and by the files' names.

    A table of the project's own kind goes with pictures (`csv`) or, without any, with DICOM files.

    Raises:
        SourceError: there are tables of several conventions.
    """
    found = _formats_of(folder)
    has_pictures = any(name.casefold().endswith(PICTURE_SUFFIXES) for name in files)
    if not has_pictures and found in ([], [SourceFormat.CSV]):
        return SourceFormat.DICOM
    if len(found) > 1:
        names = ", ".join(kind.value for kind in found)
        raise SourceError(f"the tables in {folder} are those of {names}; give data_format")
    # Pictures without a known table: reading them as `csv` says what keeps each table from it.
    return found[0] if found else SourceFormat.CSV


def _formats_of(folder: Path) -> list[SourceFormat]:
    names = {path.name.casefold() for path in list_tables(folder)}
    signs = {
        SourceFormat.NIH: bool(find_tables(folder, nih.COLUMNS)),
        SourceFormat.CHEXPERT: {"train.csv", "valid.csv"} <= names,
        SourceFormat.MIMIC: any(
            name.startswith("mimic-cxr") and "-metadata.csv" in name for name in names
        ),
        SourceFormat.RSNA: bool(find_tables(folder, nih.RSNA_COLUMNS)),
        SourceFormat.CSV: bool(find_tables(folder, generic.COLUMNS)),
    }
    return [kind for kind, holds in signs.items() if holds]


def plan_ingest(
    table: LabelTable | None,
    files: Sequence[str],
    config: IngestConfig,
    key: DeidentificationKey | None,
    others: Sequence[str] = (),
) -> Plan:
    """Decide for each row and each file what happens to it.

    Args:
        table: All rows of the source.
        files: All image files of the source, relative to it.
        config: How missing splits are made.
        key: Codes the UIDs that rows of a table of DICOM files may name.
        others: All other files of the source.

    Raises:
        LabelTableError: the splits contradict each other, or a row's name is that of several files.
    """
    if table is None:
        rows: tuple[TableRow | None, ...] = (None,) * len(files)
        return Plan(
            files=tuple(files), rows=rows, rejections=(), num_inputs=len(files), needs_row=False
        )
    if config.data_format is SourceFormat.DICOM and key is not None:
        assign_splits(table.rows, config)  # contradictions are found before hours of decoding
        return _by_file(table, files, key)
    return _by_row(table, files, config, others)


def _by_row(
    table: LabelTable, files: Sequence[str], config: IngestConfig, others: Sequence[str]
) -> Plan:
    layouts = [row.other_file for row in table.rows]
    matched = match_rows(table.name, [row.file for row in table.rows], files, layouts)
    claims = Counter(matched)
    index_of_others = index_files(others) if None in matched else {}
    rows, found, rejections = [], [], []
    named: set[str] = set()
    for row, file in zip(table.rows, matched, strict=True):
        other = find_files(row.file, index_of_others) if file is None else []
        named.update([file or "", *other])
        if file is not None and claims[file] > 1:
            rejections.append(ambiguous(file))
        elif row.rejected is not None:
            rejections.append(Rejection(file or row.file, row.rejected, "by the label table"))
        elif file is None and other:
            rejections.append(Rejection(other[0], RejectReason.NOT_AN_IMAGE, _OTHER_KIND))
        elif file is None:
            rejections.append(only_named(row))
        else:
            rows.append(row)
            found.append(file)
    unnamed = [file for file in files if file not in named]
    rejections += map(not_labelled, unnamed)
    return Plan(
        rows=assign_splits(rows, config),
        files=tuple(found),
        rejections=tuple(rejections),
        num_inputs=len(table.rows) + len(unnamed),
        num_ignored=sum(name not in named and not is_document(name) for name in others),
    )


def _by_file(table: LabelTable, files: Sequence[str], key: DeidentificationKey) -> Plan:
    names = [row.file for row in table.rows]
    matched = match_rows(table.name, names, files, may_be_uids=True)
    pairs = list(zip(table.rows, matched, strict=True))
    unmatched = {coded(key, "image", row.file): row for row, file in pairs if file is None}
    row_of = {file: row for row, file in pairs if file is not None}
    claims = Counter(matched)
    kept, rejections = [], []
    for name in files:
        named = row_of.get(name)
        if claims[name] > 1:
            rejections.append(ambiguous(name))
        elif named is not None and named.rejected is not None:
            rejections.append(Rejection(name, named.rejected, "by the label table"))
        else:
            kept.append(name)
    return Plan(
        files=tuple(kept),
        rows=tuple(row_of.get(name) for name in kept),
        rejections=tuple(rejections),
        num_inputs=len(files),
        unmatched=unmatched,
    )


def not_labelled(file: str) -> Rejection:
    """Return the rejection of a file that no row is about."""
    return Rejection(file, RejectReason.NOT_LABELLED, "no row of the table names it")


def ambiguous(file: str) -> Rejection:
    """Return the rejection of a file that several rows are about."""
    detail = "several rows of the table name it; keep one"
    return Rejection(file, RejectReason.AMBIGUOUS, detail)


def only_named(row: TableRow) -> Rejection:
    """Return the rejection of a row that is about no file."""
    return Rejection(row.file, RejectReason.MISSING, "only the table names it")


def match_rows(
    table: str,
    named: Sequence[str],
    files: Sequence[str],
    others: Sequence[str] = (),
    *,
    may_be_uids: bool = False,
) -> tuple[str | None, ...]:
    """Return the file that each row means; None if there is none.

    Args:
        table: Name of the table, for messages.
        named: How each row names its file.
        files: All image files of the source.
        others: Each row's name of its file in another layout, tried second; empty without any.
        may_be_uids: Whether a row may name a SOP Instance UID instead; such a name of several files
            is left to their headers.

    Raises:
        LabelTableError: several files have the name that a row gives.
    """
    index = index_files(files)
    ambiguous: list[tuple[str, list[str]]] = []
    found: list[str | None] = []
    for name, other in zip_longest(named, others, fillvalue=""):
        meant = find_files(name, index) or (find_files(other, index) if other else [])
        if len(meant) > 1 and not (may_be_uids and _UID.fullmatch(name)):
            ambiguous.append((name, meant))
        found.append(meant[0] if len(meant) == 1 else None)
    if ambiguous:
        name, meant = ambiguous[0]
        raise LabelTableError(
            f"{len(ambiguous)} rows of {table} match several files: the first, {name!r}, matches "
            f"{meant[0]!r} and {meant[1]!r}; write more of the path into the row, or move copies "
            "out of the source"
        )
    return _by_stem(table, named, files, found)


def index_files(files: Iterable[str]) -> FilesByName:
    """Return an index to look files up in."""
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        by_name[_parts(file)[-1]].append(file)
    return dict(by_name)


def find_files(named: str, files: FilesByName) -> list[str]:
    """Return the files that a path can mean: the one of the same path, else all that end alike.

    Composed and decomposed Unicode are the same name: file systems and editors differ in it.
    """
    wanted = _parts(named)
    alike = []
    for file in files.get(wanted[-1], []):
        parts = _parts(file)
        if parts == wanted:
            return [file]
        shared = min(len(parts), len(wanted))
        if parts[-shared:] == wanted[-shared:]:
            alike.append(file)
    return alike


def _by_stem(
    table: str, named: Sequence[str], files: Sequence[str], found: Sequence[str | None]
) -> tuple[str | None, ...]:
    """Complete what was found by name: rows and files that have nobody else are brought together.

    Args:
        table: Name of the table, for the log.
        named: How each row names its file.
        files: All image files.
        found: The file of each row that has one by name.
    """
    if all(file is not None for file in found):
        return tuple(found)
    taken = set(found)
    free: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        if file not in taken:
            free[_stem(file)].append(file)
    index = index_files(free)
    claims: defaultdict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(named):
        if found[number] is None:
            meant = [file for stem in find_files(_stem(name), index) for file in free[stem]]
            if len(meant) == 1:
                claims[meant[0]].append(number)
    added = {number: file for file, numbers in claims.items() for number in numbers}
    if added:
        _logger.warning("%d rows of %s differ from files in the suffix only", len(added), table)
    return tuple(added.get(number, file) for number, file in enumerate(found))


def _stem(path: str) -> str:
    for suffix in _SUFFIXES:
        if path.casefold().endswith(suffix):
            return path[: -len(suffix)]
    return path


def _parts(path: str) -> list[str]:
    return unicodedata.normalize("NFC", path).strip("/").split("/")
