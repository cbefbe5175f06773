"""What the cells of any label table say, and the project's own table, `labels.csv`.

It lies beside or above the images:

| column | content |
|---|---|
| `file` | path relative to the table's folder, or a bare name |
| `patient` | any id that is equal for all X-rays of one patient |
| `findings` | names joined by a vertical bar; `No Finding`; empty: not known |
| `study`, `view`, `age`, `sex`, `split` | optional; `view` is PA, AP or empty, `age` years |
| `boxes` | optional JSON list of `{finding, top, left, bottom, right}` in pixels of the file |

A finding that a row does not name is absent, unless its `findings` cell is empty.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from chexradinet.config import IngestConfig, UncertainLabel
from chexradinet.dataset.labels import (
    LabelTable,
    Line,
    TableRow,
    each_once,
    read_lines,
    the_table,
)
from chexradinet.errors import ConfigError, LabelTableError, UnknownFindingError
from chexradinet.findings import KNOWN, KNOWN_FINDINGS, Vocabulary, is_no_finding
from chexradinet.records import Box, LabelledBox, RejectReason, Split, View

COLUMNS = ("file", "patient", "findings")
"""Needed of the project's own table."""

MAX_AGE_YEARS = 120
"""An age above it is an error of entry; NIH has 411 years."""
_MAX_COMBINATIONS = 1 << 17
"""Most different rows of labels: each takes a kilobyte."""
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
_SPLITS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "validation": Split.VALIDATION,
    "validate": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "val": Split.VALIDATION,
    "test": Split.TEST,
}


def ordered(findings: Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return each finding once, in the order given: the same whatever the order of the rows."""
    present = set(findings)
    return tuple(finding for finding in order if finding in present)


def parse_age(text: str) -> float | None:
    """Return an age in years, or None if it is absent, impossible or unreadable."""
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
    """Return `F`, `M`, `O`, or empty if it is unknown."""
    return _SEXES.get(text.strip().casefold(), "")


def folded(written: str) -> str:
    """Return text in upper case, without accents, with spaces for underscores.

    Code strings have no character set, so pydicom takes them for Latin-1 if they are UTF-8.
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
    """Return the view and, if it is named but not frontal, the reason to reject the X-ray."""
    view, frontal = view_position(text)
    return view, RejectReason.NOT_FRONTAL if frontal is False else None


def parse_split(line: Line, text: str) -> Split | None:
    """Return the split a row names, or None if it names none.

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
        """Return a mapping from finding to 1, 0 or NaN.

        Raises:
            LabelTableError: there are too many different ones to be of one table.
        """
        key = tuple(None if math.isnan(value) else value for value in values)
        if key not in self._made:
            if len(self._made) >= _MAX_COMBINATIONS:
                raise LabelTableError(
                    f"a table has more than {_MAX_COMBINATIONS} combinations of labels; split it, "
                    "or name fewer findings"
                )
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
        LabelTableError: the text is not such a list, or a box has no area.
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
