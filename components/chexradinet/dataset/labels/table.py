"""Label tables as one record type, whatever the data set's convention.

A module for each convention (`nih`, `chexpert`, `mimic`, `rsna`, `generic`) reads the tables of a
folder into a `LabelTable`; this one holds the record and what all of them share.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from chexradinet.errors import LabelTableError, SourceError
from chexradinet.records import LabelledBox, RejectReason, Split, View

NO_TEXT = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a file that is not UTF-8 text, or no whole gzip file, raises."""

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """What the tables say of one X-ray."""

    file: str
    """Path with forward slashes, relative to some folder of the source; often the bare name."""
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
    """The official split, where there is one."""
    labels: Mapping[str, float]
    """1, 0 or NaN by canonical finding; rows of equal labels share one mapping."""
    boxes: tuple[LabelledBox, ...] = ()
    """In the frame that `LabelTable.box_frame` states."""
    extent_mm: tuple[float, float] | None = None
    """Height and width of the exposed field on the detector, where known."""
    rejected: RejectReason | None = None
    """Set where the table itself says that the X-ray cannot enter, such as a lateral view."""


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

    def __post_init__(self) -> None:
        """Refuse a table that names an image twice."""
        twice = [
            name for name, times in Counter(row.image_id for row in self.rows).items() if times > 1
        ]
        if twice:
            raise LabelTableError(
                f"{self.name} names {len(twice)} images more than once, the first is {twice[0]!r}; "
                "keep one row for each"
            )

    def restricted(self, findings: Sequence[str]) -> "LabelTable":
        """Return the table with these findings, in this order; all of them where none is given.

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
        LabelTableError: a needed column is missing, a line is too short for one, or the file is not
            UTF-8 text.
    """
    try:
        with open_text(path) as stream:
            reader = csv.reader(stream)
            header = [column_key(name) for name in next(reader, [])]
            missing = [name for name in needed if name not in header]
            if missing:
                raise LabelTableError(
                    f"{path.name} has no column {', '.join(missing)}; its columns are "
                    f"{', '.join(filter(None, header)) or 'none'}; mend the header"
                )
            for cells in reader:
                if not any(cells):
                    continue
                line = Line(path.name, reader.line_num, _by_column(header, cells))
                if any(name not in line.cells for name in needed):
                    raise LabelTableError(
                        f"{line.place} has {len(cells)} cells, too few for {', '.join(needed)}; "
                        "mend the row"
                    )
                yield line
    except (*NO_TEXT, csv.Error) as error:
        raise LabelTableError(f"{path.name} {_no_text(error)}") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its rights") from error


def _by_column(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}


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
        told = "; ".join(_why_not(path, needed) for path in _named_like_tables(folder))
        raise SourceError(
            f"needed is one {what} with columns {', '.join(needed)} in {folder}; "
            f"{told or 'there is no CSV file'}"
        )
    return found[0]


def _why_not(path: Path, needed: Collection[str]) -> str:
    """Return what keeps a file from being the table that is looked for, and what to do."""
    if path.is_dir():
        return f"{path.name} is a folder"
    try:
        with open_text(path) as stream:
            line = stream.readline()
    except NO_TEXT as error:
        return f"{path.name} {_no_text(error)}"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
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
    return "is no whole gzip file: compress or download it again"


def _header(path: Path) -> list[str]:
    try:
        with open_text(path) as stream:
            return [column_key(name) for name in next(csv.reader(stream), [])]
    except (*NO_TEXT, csv.Error, OSError):
        return []  # not a table at all, so not the one looked for


def ordered(findings: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return each finding once, in the order given: the same whatever the order of the rows."""
    present = set(findings)
    return tuple(finding for finding in order if finding in present)
