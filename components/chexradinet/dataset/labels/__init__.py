"""Label tables as one record type, whatever the data set's convention.

A module for each convention (`nih` with RSNA, `chexpert` with MIMIC-CXR, `generic`) reads the
tables of a folder into a `LabelTable`. Here are the record and the reading of lines; `generic` also
reads the cells of all of them, in their many spellings.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from chexradinet.errors import LabelTableError, SourceError
from chexradinet.records import LabelledBox, RejectReason, Split, View

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

NO_TEXT = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a file that is not UTF-8 text, or not a complete gzip file, raises."""
_MAX_LINE, _MAX_TABLE, _MAX_LINES = 1 << 20, 96 << 20, 1_000_000
"""Most characters of a line and of a table, and most lines, so that a small compressed file cannot
fill memory: a row takes about 350 bytes. MIMIC-CXR, the largest public table, has 377,110 rows."""
_MAX_BOXES = 1000
"""Most boxes of an image."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """What the tables say of one X-ray."""

    file: str
    """Path with forward slashes, relative to some folder of the source; often the bare name."""
    other_file: str = ""
    """Path in another layout that the data set is published in; empty without one."""
    image_id: str
    """The table's own name of the image."""
    patient_id: str
    study_id: str = ""
    view: View = View.UNKNOWN
    age: float | None = None
    """Years."""
    sex: str = ""
    """`F`, `M`, `O` or empty."""
    split: Split | None = None
    """The official split, if there is one."""
    labels: Mapping[str, float]
    """1, 0 or NaN by canonical finding; rows of equal labels share one mapping."""
    boxes: tuple[LabelledBox, ...] = ()
    """In the frame that `LabelTable.box_frame` states."""
    extent_mm: tuple[float, float] | None = None
    """Height and width of the exposed field on the detector, if known."""
    rejected: RejectReason | None = None
    """Set if the table itself says that the X-ray cannot enter, such as a lateral view."""


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """All rows of a source, and what they are about."""

    name: str
    """File name of the table, for messages."""
    findings: tuple[str, ...]
    """Canonical names of the labelled findings, in the order of the data set's columns."""
    rows: tuple[TableRow, ...]
    box_frame: tuple[int, int] | None = None
    """Height and width of the image that boxes are measured in; None: the file itself."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """How many values were set to unknown, by what was wrong with them."""

    def restricted(self, findings: Sequence[str]) -> "LabelTable":
        """Return the table with these findings, in this order; all of them if none is given.

        Raises:
            LabelTableError: the table has no label for one of them.
        """
        unknown = [finding for finding in findings if finding not in self.findings]
        if unknown:
            raise LabelTableError(
                f"{self.name} has no label for {', '.join(unknown)}; it has "
                f"{', '.join(self.findings)}"
            )
        return replace(self, findings=tuple(findings)) if findings else self


def each_once(table: str, rows: Iterable[TableRow]) -> tuple[TableRow, ...]:
    """Return the rows of a table, of which no two may name one image.

    Raises:
        LabelTableError: rows do.
    """
    kept: dict[str, TableRow] = {}
    again: Counter[str] = Counter()
    for row in rows:
        if kept.setdefault(row.image_id, row) is not row:
            again[row.image_id] += 1
    if again:
        raise LabelTableError(
            f"{table} names {len(again)} images more than once, the first is "
            f"{next(iter(again))!r}; keep one row for each"
        )
    return tuple(kept.values())


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: its place and its cells by column key."""

    table: str
    number: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, *columns: str) -> str:
        """Return the first of these cells that is there and not empty, or an empty text."""
        return next((self.cells[name] for name in columns if self.cells.get(name)), "")

    @property
    def place(self) -> str:
        """Where an error is, for its message."""
        return f"{self.table}, row {self.number}"


def with_box(
    line: Line, boxes: tuple[LabelledBox, ...], box: LabelledBox
) -> tuple[LabelledBox, ...]:
    """Return the boxes of an image with one more.

    Raises:
        LabelTableError: there are too many to be of one X-ray.
    """
    if len(boxes) >= _MAX_BOXES:
        raise LabelTableError(
            f"{line.place}: more than {_MAX_BOXES} boxes of one image; remove rows that repeat"
        )
    return (*boxes, box)


def column_key(name: str) -> str:
    """Return what is left of a column's name when case, spaces and punctuation are ignored.

    NIH's `OriginalImage[Width,Height]` is split at its comma by every CSV reader; its parts are
    `originalimagewidth` and `height`.
    """
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def read_lines(path: Path, needed: Collection[str]) -> Iterator[Line]:
    """Yield the lines of a CSV table (also `.gz`), cells stripped, empty lines left out.

    Args:
        path: The table, UTF-8 with or without byte-order mark, any line ending.
        needed: Column keys that the table must have. The header may hold more names than there are
            cells, as NIH's do.

    Raises:
        LabelTableError: a needed column is missing, a name is that of two columns, a line has too
            few or too many cells, or the file is not UTF-8 text.
    """
    try:
        with open_text(path) as stream:
            reader = _csv_rows(stream, path)
            header = _columns(path, next(reader, []), needed)
            for cells in reader:
                if any(cells):
                    yield _line(Line(path.name, reader.line_num, {}), header, cells, needed)
    except (*NO_TEXT, csv.Error) as error:
        raise LabelTableError(f"{path.name} {_no_text(error)}") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its rights") from error


def _csv_rows(stream: TextIO, path: Path) -> "CsvReader":
    # Strict: a quote that is never closed would swallow the rows after it without a word.
    return csv.reader(bounded_lines(stream, path), strict=True, skipinitialspace=True)


def bounded_lines(stream: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a text that may be compressed, reading no more than a table can hold.

    Raises:
        LabelTableError: a line, or all of them, are too long.
    """
    size = number = 0
    while line := stream.readline(_MAX_LINE + 1):
        size += len(line)
        number += 1
        if len(line) > _MAX_LINE or size > _MAX_TABLE or number > _MAX_LINES:
            limits = {
                f"{_MAX_LINE} characters in one line": len(line) > _MAX_LINE,
                f"{_MAX_TABLE} characters": size > _MAX_TABLE,
                f"{_MAX_LINES} lines": number > _MAX_LINES,
            }
            over = next(limit for limit, is_over in limits.items() if is_over)
            raise LabelTableError(
                f"{path.name} has more than {over}; split it, or give the table that came with "
                "the images"
            )
        yield line


def _columns(path: Path, names: Sequence[str], needed: Collection[str]) -> list[str]:
    header = [column_key(name) for name in names]
    while header and not header[-1]:
        header.pop()
    # pandas writes the second of two columns `findings` as `findings.1`.
    numbered = (column_key(name.rpartition(".")[0]) for name in names if re.search(r"\.\d+$", name))
    times = Counter(header) + Counter(set(numbered) & set(header))
    twice = [name for name in header if name and times[name] > 1]
    if twice:
        raise LabelTableError(
            f"{path.name}, row 1 names column {twice[0]} {times[twice[0]]} times; keep one of them"
        )
    missing = [name for name in needed if name not in header]
    if missing:
        raise LabelTableError(
            f"{path.name} has no column {', '.join(missing)}; its columns are "
            f"{', '.join(filter(None, header)) or 'none'}; correct the header"
        )
    return header


def _line(
    empty: Line, header: Sequence[str], cells: Sequence[str], needed: Collection[str]
) -> Line:
    if any(cell.strip() for cell in cells[len(header) :]):
        raise LabelTableError(
            f"{empty.place} has {len(cells)} cells, the header {len(header)}; join several "
            "findings by |, or put a cell with commas in quotes"
        )
    line = replace(
        empty, cells={name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}
    )
    if any(name not in line.cells for name in needed):
        raise LabelTableError(
            f"{line.place} has {len(cells)} cells, too few for {', '.join(needed)}; correct the row"
        )
    return line


def open_text(path: Path) -> TextIO:
    """Open a text file in UTF-8, decompressing `.gz`, line endings left as they are.

    What reading it can raise, beside `OSError`, is in `NO_TEXT`.
    """
    if path.suffix.casefold() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def find_tables(folder: Path, needed: Collection[str]) -> list[Path]:
    """Return the CSV tables directly in a folder that have all of these column keys, sorted."""
    return [path for path in list_tables(folder) if set(needed) <= set(_header(path))]


def list_tables(folder: Path) -> list[Path]:
    """Return the CSV tables directly in a folder, sorted by name."""
    return [path for path in _named_like_tables(folder) if not path.is_dir()]


def _named_like_tables(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.name.casefold().endswith((".csv", ".csv.gz"))]


def the_table(folder: Path, needed: Collection[str], what: str) -> Path:
    """Return the only table of a folder with these columns.

    Raises:
        SourceError: there is none, or more than one.
    """
    found = find_tables(folder, needed)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SourceError(
            f"{len(found)} tables in {folder} can be the {what}: {names}; keep exactly one"
        )
    if not found:
        reasons = "; ".join(_why_not(path, needed) for path in _named_like_tables(folder))
        raise SourceError(
            f"one {what} with columns {', '.join(needed)} is needed in {folder}; "
            f"{reasons or 'there is no CSV file'}"
        )
    return found[0]


def _why_not(path: Path, needed: Collection[str]) -> str:
    """Return what keeps a file from being the table that is looked for, and what to do."""
    if path.is_dir():
        return f"{path.name} is a folder"
    try:
        with open_text(path) as stream:
            line = next(bounded_lines(stream, path), "")
    except NO_TEXT as error:
        return f"{path.name} {_no_text(error)}"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    except LabelTableError as error:
        return str(error)
    used = [name for mark, name in _SEPARATORS.items() if line.count(mark) > line.count(",")]
    if used:
        return f"{path.name} has {used[0]} between its columns, not commas: save it with them"
    missing = [name for name in needed if name not in _header(path)]
    return f"{path.name} has no column {', '.join(missing)}"


def _no_text(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text, but perhaps UTF-16 or a Windows code page: save it as CSV UTF-8"
    if isinstance(error, csv.Error):
        return f"is no CSV table ({error}): save it as one, in UTF-8"
    return "is not a complete gzip file: compress or download it again"


def _header(path: Path) -> list[str]:
    try:
        with open_text(path) as stream:
            return [column_key(name) for name in next(_csv_rows(stream, path), [])]
    except (*NO_TEXT, csv.Error, OSError, LabelTableError):
        return []  # not a table at all, so not the one looked for
