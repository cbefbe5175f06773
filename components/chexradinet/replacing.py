"""What a stage may write to: a new place, an empty directory, or an older artifact of its own kind.

A path that a user gives is checked before any work, so that a slip of the keyboard costs a message
and not a folder.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chexradinet.errors import ConfigError

TABLE_KEY = b"chexradinet"
"""Key of a Parquet file's metadata under which its kind and schema version are."""


@dataclass(frozen=True, slots=True)
class Head:
    """The file by which a directory is known for an artifact of some kind."""

    name: str
    """Of a JSON document or a Parquet table, at the directory's top."""
    kind: str
    """As the document or table states it."""

    def is_in(self, directory: Path) -> bool:
        """Tell whether a directory is an artifact of this kind, of whatever schema version."""
        return _kind_of(directory / self.name) == self.kind


def require_replaceable(target: Path, head: Head) -> None:
    """Refuse a target that holds anything but an older artifact of the same kind.

    Args:
        target: Directory that a stage is about to make. Its parents are made here.
        head: Of the artifact that it will be.

    Raises:
        ConfigError: the target has no name, cannot be made, is a file, or is a directory with other
            content; artifacts are flat, so one with a folder in it is refused too.
    """
    if target.name in ("", ".."):
        raise ConfigError(f"{target} cannot be made; give the new directory a name of its own")
    try:
        _try_to_make(target)
        if os.path.lexists(target):
            _require_own(target, head)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be made: {error.strerror}; give another path, or mend its rights"
        ) from error


def require_file(target: Path, suffix: str) -> None:
    """Refuse a file that cannot be written, or whose name says that it is of another kind.

    Raises:
        ConfigError: its name does not end in `suffix`, it is a directory, or cannot be made.
    """
    if target.suffix.casefold() != suffix:
        raise ConfigError(f"{target} does not end in {suffix}; give a file's name that does")
    try:
        _try_to_make(target)
        if target.is_dir():
            raise ConfigError(f"{target} is a directory; give the path of a file in it")
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror}; give another path, or mend its rights"
        ) from error


def _try_to_make(target: Path) -> None:
    """Make and remove a directory beside the target, with a name as long as any used later."""
    target.parent.mkdir(parents=True, exist_ok=True)
    trial = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
    trial.mkdir()
    trial.rmdir()


def _require_own(target: Path, head: Head) -> None:
    if not target.is_dir():
        what = "a link that leads to no directory" if target.is_symlink() else "a file"
        raise ConfigError(f"{target} is {what}; give the path of a directory to make")
    entries = list(target.iterdir())
    if not entries:
        return
    if not head.is_in(target):
        raise ConfigError(
            f"{target} is not empty and has no {head.name} of kind {head.kind!r}, so nothing in it "
            "is replaced; give another path, or empty it yourself"
        )
    folders = [entry.name for entry in entries if entry.is_dir()]
    if folders:
        raise ConfigError(
            f"{target} holds folders beside {head.name}, which this program did not make; move "
            f"them ({', '.join(sorted(folders)[:3])}) away, or give another path"
        )


def _kind_of(path: Path) -> str | None:
    try:
        if path.suffix == ".parquet":
            metadata = pq.read_schema(path).metadata or {}
            document = json.loads(metadata.get(TABLE_KEY, b"{}"))
        else:
            document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, pa.ArrowException):
        return None
    kind = document.get("kind") if isinstance(document, dict) else None
    return kind if isinstance(kind, str) else None
