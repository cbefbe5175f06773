"""Where ingest may write: never over or into what it reads, nor over what is not its own."""

import os
import re
from pathlib import Path

from chexradinet.artifacts import require_file, require_replaceable
from chexradinet.config import IngestConfig
from chexradinet.dataset.dataset import DATASET_HEAD
from chexradinet.errors import ConfigError
from chexradinet.ingest.sources import is_archive
from chexradinet.store import exists, join_uri, open_store, parse_uri

DATASET_FILES = re.compile(
    r"(images-\d{5}|doubtful)\.npy|(manifest|rejected|headers|doubtful)\.parquet"
)
"""Names of a data set's files, but for its head."""


def require_target(target: Path, source: str, labels: str) -> None:
    """Refuse a directory that would cost the user something.

    Args:
        target: Directory of the data set.
        source: Where the X-rays are, as the user gave it.
        labels: Where the label tables are; empty for the source.

    Raises:
        ConfigError: it holds anything but an older data set, cannot be made, is or holds one of the
            two folders, or lies in the source.
    """
    _require_apart(str(target), source, labels)
    require_replaceable(target, DATASET_HEAD)


def require_prefix(out: str, source: str, labels: str, config: IngestConfig) -> None:
    """Refuse a prefix of a bucket as `require_target` refuses a directory.

    Raises:
        ConfigError: it holds objects but no data set, complete or half uploaded, or overlaps what
            is read.
        StoreError: it cannot be listed.
    """
    _require_apart(out, source, labels)
    store, prefix = open_store(out, config.store)
    if exists(join_uri(out, DATASET_HEAD.name), config.store):
        return
    names = (found.key[len(prefix) :] for found in store.list(prefix))
    if any(not DATASET_FILES.fullmatch(name) for name in names):
        raise ConfigError(
            f"{out} is not empty and has no {DATASET_HEAD.name}, so no data set is put there; give "
            "another prefix, or empty it"
        )


def require_report(report: str) -> None:
    """Refuse a path that the ingest report cannot be written to.

    Raises:
        ConfigError: it is no `.html` file of this machine, or cannot be written.
    """
    if "://" in report:
        raise ConfigError(f"report {report!r} is not a local path; give a file on this machine")
    require_file(Path(report), ".html")


def _require_apart(target: str, source: str, labels: str) -> None:
    place = _parts(target)
    for what, read in (("source", source), ("label tables", labels)):
        folder = _parts(read) if read and not is_archive(read) else None
        if folder is None:
            continue
        if place == folder[: len(place)]:
            raise ConfigError(
                f"the data set would take the place of the {what}: {target} is or holds {read}; "
                "give another directory"
            )
        inside = place[len(folder) :] if place[: len(folder)] == folder else ()
        # Hidden folders are not read, and only the top of the tables' folder is.
        if what == "source" and inside and not any(part.startswith(".") for part in inside):
            raise ConfigError(
                f"the data set would become part of the source: {target} lies in {read}; give "
                "another directory"
            )


def _parts(place: str) -> tuple[str, ...]:
    location = parse_uri(place)
    if location.bucket is not None:
        return ("bucket", location.bucket, *filter(None, location.key.split("/")))
    path = Path(location.key) if "://" in place else Path(place).expanduser()
    # Not Path.resolve, which raises where links lead in a circle.
    return Path(os.path.realpath(path)).parts
