"""Where ingest writes: what it may replace, what a killed one leaves, how the next one continues.

It never writes over or into what it reads, nor over what is not its own. Beside the target lies a
hidden folder, named after a digest of all that decides the result: the source's listing, its
tables, the settings, the key. In it `data/` is the data set under construction, and with each full
shard `outcomes-NNNNN.json` says what became of every file up to its end. The next run with the same
digest takes those outcomes for decoded, and decodes the rest. So it writes the bytes that an
undisturbed run would have written. What the machine has lost is fetched from the store: below the
URI in `CHEXRADINET_CHECKPOINT_URI`, in a folder named by the digest of the work, lies a copy of
each full shard and its document. That serves the retry of a pod that was evicted, and a run that is
submitted again for a source that has not changed. So copies are not removed at the end; a lifecycle
rule expires them.
"""

import errno
import fcntl
import glob
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chexradinet.artifacts import (
    put_in_place,
    read_document,
    record_of,
    require_file,
    require_replaceable,
    sha256_of,
    write_document,
)
from chexradinet.config import IngestConfig, StoreConfig
from chexradinet.dataset import DATASET_HEAD, DatasetInfo, open_dataset, shard_name
from chexradinet.dataset.deidentification import DeidentificationKey, coded
from chexradinet.dicom import is_dicomweb
from chexradinet.errors import (
    ArtifactError,
    ConfigError,
    SourceError,
    StoreBucketError,
    StoreError,
    StoreFullError,
    StoreIntegrityError,
    StoreNotFoundError,
)
from chexradinet.ingest import TABLE_SUFFIXES, Listed
from chexradinet.ingest.decoding import Decoded, Facts, Outcome, Refused
from chexradinet.store import exists, open_store
from chexradinet.store.uri import checkpoint_folder, join_uri, parse_uri
from chexradinet.version import __version__

DATASET_FILES = re.compile(
    r"(images-\d{5}|doubtful)\.npy|(manifest|rejected|headers|doubtful)\.parquet"
)
"""Names of a data set's files, but for its head."""
_logger = logging.getLogger(__name__)
_KIND, _FINISHED, _SCHEMA = "ingest-outcomes", "ingest-finished", 2
"""The schema is also to be raised when equal listings and tables come to another plan: outcomes
are kept in the plan's order."""


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
        folder = _parts(read) if read and not is_dicomweb(read) else None
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


def work_digest(
    files: Sequence[Listed], tables: Path, config: IngestConfig, key: DeidentificationKey | None
) -> str:
    """Return the digest of all that decides what an ingest writes, the release included."""
    digest = hashlib.sha256(f"{__version__}\0{_SCHEMA}\0{config.digest()}".encode())
    digest.update(coded(key, "work", "").encode() if key is not None else b"")
    for file in files:
        digest.update(os.fsencode(f"{file.name}\0{file.stamp}\0"))
    for table in sorted(tables.iterdir()):
        if table.name.casefold().endswith(TABLE_SUFFIXES) and table.is_file():
            digest.update(os.fsencode(f"{table.name}\0{sha256_of(table)}\0"))
    return digest.hexdigest()


class _KeptShards:
    """The store's copy of one work folder; without a URI in the environment, nothing."""

    def __init__(self, work: Path, digest: str, config: StoreConfig) -> None:
        self._work = work
        self._config = config
        self._uri = checkpoint_folder(f"ingest-{digest}")

    def fetch(self, names: tuple[str, ...]) -> bool:
        """Copy files into the work folder, the one that stands for the others last.

        Returns whether all are there now.
        """
        if not self._uri:
            return False
        store, prefix = open_store(self._uri, self._config)
        try:
            for name in names:
                store.get_file(prefix + name, self._work / name)
        except StoreBucketError:
            raise
        except StoreNotFoundError:
            return False
        except StoreIntegrityError as error:
            _logger.warning("a kept shard is decoded again: %s", error)
            return False
        _logger.info("%s was taken from %s", names[0], self._uri)
        return True

    def keep(self, names: tuple[str, ...]) -> None:
        """Copy files from the work folder; a store that fails costs the copy, not the run."""
        if not self._uri:
            return
        try:
            store, prefix = open_store(self._uri, self._config)
            for name in names:
                store.put_file(prefix + name, self._work / name)
        except StoreError as error:
            _logger.warning("%s is not kept in %s: %s", names[0], self._uri, error)


class Checkpoint:
    """The finished part of an ingest; `working_on` makes it."""

    def __init__(self, folder: Path, kept: _KeptShards) -> None:
        self._folder = folder
        self._kept = kept
        self.data = folder / "data"
        """Where the data set is written."""
        self.data.mkdir(exist_ok=True)
        self.restored: list[Outcome] = []
        """Outcomes of the first files, those whose shards are finished."""
        self.num_shards = 0
        """Finished shards."""
        self._fresh: list[Outcome] = []
        self._restore()

    def outcomes(self, fresh: Iterable[Outcome]) -> Iterator[Outcome]:
        """Yield the restored outcomes, then those of the files that were still to be decoded."""
        yield from self.restored
        for outcome in fresh:
            light = Decoded(outcome.facts, None) if isinstance(outcome, Decoded) else outcome
            self._fresh.append(light)
            yield outcome

    def shards_are_full(self, num_shards: int) -> None:
        """Keep what was yielded so far, if a shard was filled since the last call."""
        if num_shards <= self.num_shards:
            return
        content = {
            "shard": sha256_of(self.data / shard_name(self.num_shards)),
            "outcomes": [_as_values(outcome) for outcome in self._fresh],
        }
        write_document(self._document(self.num_shards), _KIND, _SCHEMA, content)
        self._kept.keep(self._names(self.num_shards))
        self.num_shards, self._fresh = num_shards, []

    def _document(self, number: int) -> Path:
        return self._folder / f"outcomes-{number:05d}.json"

    def _names(self, number: int) -> tuple[str, str]:
        shard = self.data / shard_name(number)
        return f"{self.data.name}/{shard.name}", self._document(number).name

    def _restore(self) -> None:
        finished = set()
        while (outcomes := self._outcomes_of_next()) is not None:
            finished.add(self.data / shard_name(self.num_shards))
            self.restored += outcomes
            self.num_shards += 1
        for path in self.data.iterdir():
            if path not in finished:
                path.unlink()

    def _outcomes_of_next(self) -> list[Outcome] | None:
        """Return the outcomes of the next shard if it is whole, here or in the store's copy."""
        outcomes = self._outcomes(self.num_shards)
        if outcomes is None and self._kept.fetch(self._names(self.num_shards)):
            outcomes = self._outcomes(self.num_shards)
        return outcomes

    def _outcomes(self, number: int) -> list[Outcome] | None:
        document, shard = self._document(number), self.data / shard_name(number)
        if not document.exists():
            return None
        content = read_document(document, _KIND, _SCHEMA)
        if not shard.is_file() or sha256_of(shard) != content["shard"]:
            return None  # the machine went down before the shard was on disk
        return [_outcome_of(values) for values in content["outcomes"]]


def note_finished(note: Path, work: str, made: DatasetInfo) -> None:
    """Note from which work a data set was made, just before it is put in place.

    Args:
        note: The file to write.
        work: What `work_digest` returned.
        made: The complete data set.
    """
    write_document(note, _FINISHED, _SCHEMA, {"work": work, "dataset": made.digest})


def finished_dataset(note: Path, work: str, target: Path) -> DatasetInfo | None:
    """Return the data set at a target if it is whole and was made from this work, else None."""
    try:
        content = read_document(note, _FINISHED, _SCHEMA)
        made = open_dataset(target).info
    except ArtifactError:
        return None
    return made if content == content | {"work": work, "dataset": made.digest} else None


@contextmanager
def working_on(target: Path, digest: str, store: StoreConfig) -> Iterator[Checkpoint]:
    """Yield a checkpoint whose `data` becomes `target` when the block ends without an error.

    On an error its folder is kept if it holds a finished shard. Folders that ingests of other
    input left behind for this target are removed in the end.

    Raises:
        SourceError: another process is writing this data set.
        StoreError: finished shards are kept in a store, and it cannot be read; or the disk is full.
    """
    folder = target.with_name(f".{target.name}.resume-{digest[:16]}")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as is_mine:
        if not is_mine:
            raise SourceError(f"another process is writing {target}; wait for it, or stop it")
        checkpoint = Checkpoint(folder, _KeptShards(folder, digest, store))
        try:
            yield checkpoint
            put_in_place(checkpoint.data, target, DATASET_HEAD)
        except BaseException as error:
            if not checkpoint.num_shards:
                shutil.rmtree(folder)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError(
                    f"no space is left for {target}; free some, then run again: finished shards "
                    "are kept"
                ) from error
            raise
        shutil.rmtree(folder)
    _remove_stale(target)


def _remove_stale(target: Path) -> None:
    for folder in target.parent.glob(f".{glob.escape(target.name)}.resume-*"):
        with _locked(folder) as is_mine:
            if is_mine:
                shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; yields False if another process does. A kill releases it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _logger.warning("no locks here (%s): run one ingest at a time", error.strerror)
    return True


def _as_values(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Decoded):
        return asdict(outcome.facts)
    image_id = outcome.image_id if isinstance(outcome, Refused) else ""
    return {"reason": outcome.reason, "detail": outcome.detail, "image_id": image_id}


def _outcome_of(values: dict[str, Any]) -> Outcome:
    try:
        if "reason" in values:
            return Refused(**values)
        return Decoded(record_of(Facts, values), None)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            "the folder that an interrupted ingest left beside the target is of another release; "
            "remove it and run again"
        ) from error
