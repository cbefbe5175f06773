"""Finished artifacts, kept beside the checkpoints so that equal work is done once.

Below the URI in `CHEXRADINET_CHECKPOINT_URI`, in a folder named by the digest of the work (inputs,
settings, release), lies a copy of what a stage made, with a list of its files' SHA-256 that is
written last. A stage that is to do the same work takes the copy, if every file is as listed: after
a later stage failed, a run that is submitted again trains nothing twice. A bucket expires copies by
its lifecycle rule; in a folder of this machine those older than `KEPT_DAYS` are removed when
another is kept.
"""

import logging
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from chexradinet.artifacts import (
    Head,
    put_in_place,
    read_document,
    sha256_of,
    write_document,
)
from chexradinet.config import StoreConfig, digest_of
from chexradinet.errors import ArtifactError, StoreError, StoreIntegrityError, StoreNotFoundError
from chexradinet.store.opening import DEFAULT, open_store
from chexradinet.store.transfer import add_directory, download_directory, upload_directory
from chexradinet.store.uri import checkpoint_folder, parse_uri
from chexradinet.version import __version__

KEPT_DAYS = 30
"""Days that a finished artifact is kept."""

_LIST, _KIND, _SCHEMA = "finished.json", "finished", 1
_log = logging.getLogger(__name__)


class FinishedWork:
    """One piece of work, and where its result is kept."""

    def __init__(
        self, stage: str, work: str, *, reuse: bool, config: StoreConfig = DEFAULT
    ) -> None:
        """Name the work.

        Args:
            stage: Name of the stage.
            work: Digest of all inputs and settings that decide its result.
            reuse: Whether a result is taken; one is kept in any case.
            config: How the store is talked to.
        """
        self._stage = stage
        self._reuse = reuse
        self._config = config
        self._uri = checkpoint_folder(f"finished-{digest_of([__version__, stage, work])}")

    def take(self, target: Path, head: Head) -> bool:
        """Put the kept result at `target`, and return whether there is one that is whole.

        Raises:
            StoreError: the store cannot be read.
        """
        if not self._uri or not self._reuse:
            return False
        store, prefix = open_store(self._uri, self._config)
        if not store.exists(prefix + _LIST):
            return False
        with TemporaryDirectory(prefix=f".{target.name}.kept-", dir=target.parent) as scratch:
            copy = Path(scratch) / "copy"
            try:
                download_directory(self._uri, copy, self._config)
                listed = read_document(copy / _LIST, _KIND, _SCHEMA)["files"]
                if listed != _files_of(copy):
                    raise ArtifactError("its files are not those that were kept")
            except (ArtifactError, StoreIntegrityError, StoreNotFoundError) as error:
                _log.warning(
                    "%s is done again, what is kept of it is unusable: %s", self._stage, error
                )
                return False
            (copy / _LIST).unlink()
            put_in_place(copy, target, head)
        _log.info("%s was done before; taken from %s", self._stage, self._uri)
        return True

    def keep(self, made: Path) -> None:
        """Keep a result; a store that fails costs the copy, not the run."""
        if not self._uri:
            return
        try:
            upload_directory(made, self._uri, self._config)
            self._list(made)
        except StoreError as error:
            _log.warning("the result of %s is not kept: %s", self._stage, error)
        _remove_expired(self._uri)

    def share(self, made: Path) -> None:
        """Keep what other machines need, unless it is there; they may read it meanwhile.

        Raises:
            StoreError: the store does not take it.
        """
        store, prefix = open_store(self._uri, self._config)
        if not store.exists(prefix + _LIST):
            add_directory(made, self._uri, self._config)
            self._list(made)

    def _list(self, made: Path) -> None:
        store, prefix = open_store(self._uri, self._config)
        with TemporaryDirectory(prefix="chexradinet-finished-") as scratch:
            listed = Path(scratch) / _LIST
            write_document(listed, _KIND, _SCHEMA, {"files": _files_of(made)})
            store.put_file(prefix + _LIST, listed)


def _files_of(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _LIST)
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def _remove_expired(uri: str) -> None:
    own = parse_uri(uri).path
    if own is None:
        return
    oldest = time.time() - KEPT_DAYS * 86_400
    for note in own.parent.glob(f"finished-*/{_LIST}"):
        if note.stat().st_mtime < oldest:
            shutil.rmtree(note.parent, ignore_errors=True)
