"""Which file a row of a label table means.

Tables name files in their own way: NIH by the bare name, wherever the archives were unpacked;
CheXpert by a path that starts above the folder; ours by the path from the table. A file is meant
when one of the two paths ends in the other, whole names compared.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

FilesByName = Mapping[str, list[str]]
"""Files of a source, in order, by their bare name in Unicode's composed form."""


def index_files(files: Iterable[str]) -> FilesByName:
    """Return an index to look files up in."""
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        by_name[_parts(file)[-1]].append(file)
    return dict(by_name)


def find_file(named: str, files: FilesByName) -> str | None:
    """Return the file that a table means by a path, the first of several, or None.

    Composed and decomposed Unicode are the same name: file systems and editors differ in it.
    """
    wanted = _parts(named)
    for file in files.get(wanted[-1], []):
        parts = _parts(file)
        shared = min(len(parts), len(wanted))
        if parts[-shared:] == wanted[-shared:]:
            return file
    return None


def _parts(path: str) -> list[str]:
    return unicodedata.normalize("NFC", path).strip("/").split("/")
