"""Names that leave ingest: as the source has them, or as codes where identifiers are replaced.

What a name stands for is never told by a message either: where there is a key, values that a table
reader or a listing quotes are left out of errors.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from chexradinet.dataset.deidentification import KEY_VARIABLE, DeidentificationKey, coded
from chexradinet.dataset.deidentification import deidentification_key as needed_key
from chexradinet.errors import LabelTableError, SourceError

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
"""What `repr` gives for a text, also where it holds both kinds of quotes."""
_COLUMNS = re.compile(r"its columns are [^;]*;", re.DOTALL)
_HIDDEN = "(not shown)"


def optional_key(needed: bool) -> DeidentificationKey | None:
    """Return the key of the environment, or None where there is none and none is needed.

    Raises:
        ConfigError: it is needed and not set, or set and too short.
    """
    given = os.environ.get(KEY_VARIABLE, "").strip()
    return needed_key() if needed or given else None


def name_of(key: DeidentificationKey | None, kind: str, name: str) -> str:
    """Return what stands for a name in the data set.

    Args:
        key: Makes codes; None keeps the name. Bytes that are no Unicode are escaped.
        kind: `patient`, `study`, `image` or `file`.
        name: As in the source; empty stays empty.
    """
    readable = os.fsencode(name).decode("utf-8", "backslashreplace")
    return coded(key, kind, readable) if key is not None and name else readable


@contextmanager
def discreet(key: DeidentificationKey | None) -> Iterator[None]:
    """Where there is a key, leave values of tables and names of folders out of raised errors."""
    try:
        yield
    except (LabelTableError, SourceError) as error:
        if key is None:
            raise
        told = _QUOTED.sub(_HIDDEN, _COLUMNS.sub(f"its columns are {_HIDDEN};", str(error)))
        # Without its cause, whose text would be printed with a traceback.
        raise type(error)(told) from None
