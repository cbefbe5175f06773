"""Which file a row of a label table means.

Tables name files in their own way: NIH by the bare name, wherever the archives were unpacked;
CheXpert by a path that starts above the folder; ours by the path from the table. A file is meant
when one of the two paths ends in the other, whole names compared; a path that is the same from end
to end goes first. Copies of the public data sets come in other formats: where no file has the name,
the only one that differs in nothing but its suffix is meant.
"""

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from chexradinet.errors import LabelTableError
from chexradinet.ingest.sources import IMAGE_SUFFIXES

FilesByName = Mapping[str, list[str]]
"""Files of a source, in order, by their bare name in Unicode's composed form."""

_SUFFIXES = (*IMAGE_SUFFIXES, ".ima", ".tif", ".tiff", ".bmp", ".gif", ".webp")
"""Of files that hold an image, also of kinds that are not read."""
_UID = re.compile(r"[0-9.]+")
_logger = logging.getLogger(__name__)


def match_rows(
    table: str, named: Sequence[str], files: Sequence[str], *, may_be_uids: bool = False
) -> tuple[str | None, ...]:
    """Return the file that each row means; None where there is none.

    Args:
        table: Name of the table, for messages.
        named: How each row names its file.
        files: All image files of the source.
        may_be_uids: Whether a row may name a SOP Instance UID instead; such a name of several files
            is left to their headers.

    Raises:
        LabelTableError: several files have the name that a row gives.
    """
    index = index_files(files)
    ambiguous: list[tuple[str, list[str]]] = []
    found: list[str | None] = []
    for name in named:
        meant = find_files(name, index)
        if len(meant) > 1 and not (may_be_uids and _UID.fullmatch(name)):
            ambiguous.append((name, meant))
        found.append(meant[0] if len(meant) == 1 else None)
    if ambiguous:
        name, meant = ambiguous[0]
        raise LabelTableError(
            f"{len(ambiguous)} rows of {table} give names that several files have: the first, "
            f"{name!r}, means {meant[0]!r} and {meant[1]!r}; write more of the path into the row, "
            "or move copies out of the source"
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
    added = {numbers[0]: file for file, numbers in claims.items() if len(numbers) == 1}
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
