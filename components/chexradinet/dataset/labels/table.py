"""Label tables as one record type, whatever the data set's convention.

A module for each convention (`nih`, `chexpert` with MIMIC-CXR, `rsna`, `generic`) reads the tables
of a folder into a `LabelTable`; this one holds the record and what they share: reading lines, and
cells in their many spellings. Ages are years; DICOM's age strings (`060Y`, `013M`) are read too.
"""

import csv
import gzip
import json
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from chexradinet.config import UncertainLabel
from chexradinet.errors import ConfigError, LabelTableError, SourceError, UnknownFindingError
from chexradinet.findings import KNOWN, Vocabulary, is_no_finding
from chexradinet.records import Box, LabelledBox, RejectReason, Split, View

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

NO_TEXT = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a file that is not UTF-8 text, or no whole gzip file, raises."""

MAX_AGE_YEARS = 120
"""An age above it is an error of entry; NIH has 411 years."""

_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
NOT_SAID = frozenset(
    {"", "UNKNOWN", "UNK", "OTHER", "NONE", "DEFAULT", "N/A", "NA", "NAN", "NULL", "UNDEFINED"}
)
"""What a field holds where somebody had to fill it in."""
_PA = re.compile(r"\b(PA|P[-.]A|POSTERO.?ANTERIOR)\b")
_AP = re.compile(r"\b(AP|A[-.]P|ANTERO.?POSTERIOR)\b")
_NOT_FRONTAL = re.compile(
    r"\b(LAT|LATERAL\w*|LL|RL|LLAT|RLAT|SEITLICH|PROFIL|OBLIQU\w*|DECUB\w*|LLD|RLD|LORDOTIC|AXIAL"
    r"|LAO|RAO|LPO|RPO)\b"
)
_MAX_LINE, _MAX_TABLE = 1 << 20, 1 << 27
"""Most characters of a line and of a table, so that a small compressed file cannot fill memory."""
_MAX_BOXES = 1000
"""Most boxes of an image."""
_SPLITS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "validation": Split.VALIDATION,
    "validate": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "val": Split.VALIDATION,
    "test": Split.TEST,
}
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
    size = 0
    while line := stream.readline(_MAX_LINE + 1):
        size += len(line)
        if len(line) > _MAX_LINE or size > _MAX_TABLE:
            what, most = ("", _MAX_TABLE) if size > _MAX_TABLE else (" in one line", _MAX_LINE)
            raise LabelTableError(
                f"{path.name} has more than {most} characters{what}; split it, or give the table "
                "that came with the images"
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
    return "is no whole gzip file: compress or download it again"


def _header(path: Path) -> list[str]:
    try:
        with open_text(path) as stream:
            return [column_key(name) for name in next(_csv_rows(stream, path), [])]
    except (*NO_TEXT, csv.Error, OSError, LabelTableError):
        return []  # not a table at all, so not the one looked for


def ordered(findings: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return each finding once, in the order given: the same whatever the order of the rows."""
    present = set(findings)
    return tuple(finding for finding in order if finding in present)


def parse_age(text: str) -> float | None:
    """Return an age in years, or None where it is absent, impossible or unreadable."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    if match is None:
        return None
    years = float(match[1]) * _YEARS[match[2]]
    return years if years <= MAX_AGE_YEARS else None


def noted_age(text: str, notes: Counter[str]) -> float | None:
    """Return `parse_age(text)`, and count in `notes` an age that is given but not a human one."""
    age = parse_age(text)
    if text and age is None:
        notes["impossible or unreadable age"] += 1
    return age


def parse_sex(text: str) -> str:
    """Return `F`, `M`, `O`, or empty where it is unknown."""
    return _SEXES.get(text.strip().casefold(), "")


def folded(written: str) -> str:
    """Return text in upper case, without accents, with spaces for underscores.

    Code strings have no character set, so pydicom takes them for Latin-1 where they are UTF-8.
    """
    with suppress(UnicodeError):
        written = written.encode("latin-1").decode("utf-8")
    apart = unicodedata.normalize("NFKD", written.upper())
    plain = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return plain.replace("_", " ").strip()


def view_in(words: str) -> tuple[View, bool]:
    """Return which frontal view folded words name, and whether they name another projection."""
    other = bool(_NOT_FRONTAL.search(words))
    if _PA.search(words):
        return View.PA, other
    return View.AP if _AP.search(words) else View.UNKNOWN, other


def view_position(text: str) -> tuple[View, bool | None]:
    """Return the view that a cell or DICOM's View Position names, and whether it is frontal.

    `PA` or `AP`, also with more words (`AP_SUPINE`, `PA erect`), unless one of them is another
    projection (`AP LORDOTIC`, `PA LLD`). `FRONTAL`, `UNKNOWN` and the like leave both open: None.
    """
    words = folded(text)
    if words in NOT_SAID or words == "FRONTAL":
        return View.UNKNOWN, None
    view, other = view_in(words)
    return (View.UNKNOWN, False) if other else (view, view is not View.UNKNOWN)


def parse_view(text: str) -> tuple[View, RejectReason | None]:
    """Return the view and, where it is named but not frontal, the reason to reject the X-ray."""
    view, frontal = view_position(text)
    return view, RejectReason.NOT_FRONTAL if frontal is False else None


def parse_split(line: Line, text: str) -> Split | None:
    """Return the split a row names, or None where it names none.

    Raises:
        LabelTableError: the name is none of `train`, `validation` and `test`.
    """
    if not text:
        return None
    split = _SPLITS.get(text.casefold())
    if split is None:
        raise LabelTableError(
            f"{line.place}: split is {text!r}; it must be train, validation, test or empty"
        )
    return split


def parse_findings(line: Line, text: str, vocabulary: Vocabulary = KNOWN) -> tuple[str, ...]:
    """Return the canonical findings of a cell that joins them by `|`; empty for `No Finding`.

    Raises:
        UnknownFindingError: a name is unknown; the message says where.
        LabelTableError: the cell says `No Finding` beside a finding.
    """
    try:
        findings = vocabulary.canonical_all(text.split("|"))
    except UnknownFindingError as error:
        raise UnknownFindingError(f"{line.place}: {error}") from error
    if findings and any(is_no_finding(name) for name in text.split("|")):
        raise LabelTableError(f"{line.place} says {text!r}: a finding and none; keep one of them")
    return findings


def finding_at(line: Line, name: str, vocabulary: Vocabulary = KNOWN) -> str:
    """Return the canonical name of one finding.

    Raises:
        UnknownFindingError: it is unknown; the message says where.
    """
    try:
        return vocabulary.canonical(name)
    except UnknownFindingError as error:
        raise UnknownFindingError(f"{line.place}: {error}") from error


class LabelMappings:
    """Makes the label mapping of a row; rows with equal labels share it, which saves memory."""

    def __init__(self, findings: Sequence[str]) -> None:
        self._findings = tuple(findings)
        self._made: dict[tuple[float | None, ...], Mapping[str, float]] = {}

    def of_values(self, values: Sequence[float]) -> Mapping[str, float]:
        """Return a mapping from finding to 1, 0 or NaN."""
        key = tuple(None if math.isnan(value) else value for value in values)
        if key not in self._made:
            self._made[key] = dict(zip(self._findings, values, strict=True))
        return self._made[key]

    def of_positives(self, positives: Sequence[str]) -> Mapping[str, float]:
        """Return 1 for these findings and 0 for all others."""
        return self.of_values([float(finding in positives) for finding in self._findings])

    def of_unknown(self) -> Mapping[str, float]:
        """Return NaN for every finding."""
        return self.of_values([math.nan] * len(self._findings))


def certain(
    line: Line, finding: str, text: str, policy: tuple[UncertainLabel, Mapping[str, UncertainLabel]]
) -> float:
    """Return a CheXpert-style label as 1, 0 or NaN.

    Args:
        line: The row, for messages.
        finding: Canonical name, for the exceptions of the policy.
        text: `1.0`, `0.0`, `-1.0` (uncertain) or empty. Empty, a finding that the report does not
            mention, is 0 as in Irvin et al. 2019.
        policy: What `config.parse_uncertain` returned.

    Raises:
        LabelTableError: the text is none of these.
    """
    try:
        value = float(text or 0)
    except ValueError:
        value = math.nan
    if value == -1:
        overall, exceptions = policy
        chosen = exceptions.get(finding, overall)
        return {UncertainLabel.ONES: 1.0, UncertainLabel.ZEROS: 0.0}.get(chosen, math.nan)
    if value not in (0, 1):
        raise LabelTableError(f"{line.place}: {finding} is {text!r}; it must be 1, 0, -1 or empty")
    return value


def parse_boxes(line: Line, text: str, vocabulary: Vocabulary) -> tuple[LabelledBox, ...]:
    """Return the boxes of a JSON list of `{finding, top, left, bottom, right}`.

    Raises:
        LabelTableError: the text is no such list, or a box has no area.
    """
    if not text:
        return ()
    try:
        return tuple(_labelled_box(line, item, vocabulary) for item in json.loads(text))
    except RecursionError as error:
        raise LabelTableError(f"{line.place}: boxes are lists in lists without end") from error
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise LabelTableError(
            f"{line.place}: boxes must be a JSON list of objects with finding, top, left, bottom "
            f"and right in pixels, top < bottom and left < right; {type(error).__name__}: {error}"
        ) from error


def _labelled_box(line: Line, item: Mapping[str, Any], vocabulary: Vocabulary) -> LabelledBox:
    sides = [float(item[side]) for side in ("top", "left", "bottom", "right")]
    return LabelledBox(finding_at(line, item["finding"], vocabulary), Box(*sides))
