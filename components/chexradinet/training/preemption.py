"""Training that survives the end of its pod: stop when asked to, continue from there.

State is kept below the URI in `CHEXRADINET_CHECKPOINT_URI`, in a folder named by the run's digest:
after each epoch, every few minutes within one, and when the process is asked to end. The same run,
started again, continues from there and comes to the same weights.
"""

import contextlib
import logging
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from chexradinet.artifacts import read_document
from chexradinet.errors import Interrupted, StoreError, StoreIntegrityError, StoreNotFoundError
from chexradinet.model.checkpoint import KIND, POSITION_FILE, SCHEMA
from chexradinet.model.distributed import Ranks
from chexradinet.parallel import on_signals
from chexradinet.store.opening import open_store
from chexradinet.store.transfer import download_directory, upload_directory
from chexradinet.store.uri import CHECKPOINT_VARIABLE, checkpoint_folder, join_uri

_log = logging.getLogger(__name__)

SAVE_INTERVAL_S = 300.0
"""Time within an epoch after which its state is kept; a kill without notice loses no more."""


@dataclass
class Safeguard:
    """What a flow hands to `fit`, and asks before and after it."""

    folder: str
    """URI of this run's folder; empty keeps nothing."""
    local: Path
    """Where `fit` writes its state."""
    stopping: str = ""
    """Name of the signal that asked for the end."""
    training: bool = True
    """Whether `fit` may still be asking `should_stop`."""
    writes: bool = True
    """Whether this process keeps the state; of several that train together, one does."""
    newest: str = ""
    """Name of the state that is kept."""
    _kept: tuple[int, int] = (0, 0)
    _saved_at: float = field(default_factory=time.monotonic)

    @property
    def checkpoint(self) -> Path | None:
        """Directory for `fit`, None if nothing is kept."""
        return self.local if self.folder else None

    def should_stop(self) -> bool:
        """Keep what `fit` has written since it last asked, and tell whether it is to stop."""
        if not self.stopping:
            self.keep()
        return bool(self.stopping)

    def should_save(self) -> bool:
        """Tell `fit` whether it is time to write its state within an epoch."""
        return time.monotonic() - self._saved_at >= SAVE_INTERVAL_S

    def trained(self) -> None:
        """Note that `fit` is done: from here on a signal ends the flow where it is.

        Raises:
            Interrupted: a signal came during the last step.
        """
        self.keep()
        self.training = False
        if self.stopping:
            raise Interrupted(self.message())

    def keep(self) -> None:
        """Upload the state if it is newer than what was uploaded; older ones go away after it.

        A store that fails is a warning: training continues, and the next state is tried again.
        """
        written = self.local / POSITION_FILE
        if not (self.folder and self.writes and written.exists()):
            return
        status = written.stat()
        if self._kept == (status.st_mtime_ns, status.st_ino):
            return
        self._kept, self._saved_at = (status.st_mtime_ns, status.st_ino), time.monotonic()
        name = f"step-{read_document(written, KIND, SCHEMA)['step']:09d}"
        try:
            upload_directory(self.local, join_uri(self.folder, name))
            _forget(self.folder, except_for=name)
        except StoreError as error:
            _log.warning("the state of %s is not kept: %s", name, error)
        else:
            self.newest = name
            _log.info("the state of %s is kept in %s", name, self.folder)

    def restore(self) -> None:
        """Download the newest whole state of this run, if there is one.

        A state that is damaged, or removed meanwhile, is a warning: the training starts over.

        Raises:
            StoreError: the store cannot be read.
        """
        states = _states(self.folder) if self.folder else []
        if not states:
            return
        try:
            download_directory(join_uri(self.folder, states[-1]), self.local)
        except (StoreIntegrityError, StoreNotFoundError) as error:
            _log.warning("training starts over, %s cannot be used: %s", states[-1], error)
            return
        self.newest = states[-1]
        status = (self.local / POSITION_FILE).stat()
        self._kept = (status.st_mtime_ns, status.st_ino)
        _log.info("training continues from %s in %s", states[-1], self.folder)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal; outside of `fit` end at once. A second one ends the process."""
        self.stopping = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        _log.warning("%s: training stops after this step", self.stopping)
        if not self.training:
            raise Interrupted(self.message())

    def message(self) -> str:
        """Return what an interrupted flow says."""
        if self.newest:
            state = (
                f"{self.newest} is kept in {self.folder}: run the same again to continue from it"
            )
        elif self.folder:
            state = f"no state is kept in {self.folder}: run again to start over"
        else:
            state = f"no state is kept: set {CHECKPOINT_VARIABLE} to a folder for it"
        return f"{self.stopping} ended the training; {state}"


@contextmanager
def safeguard(run: str, checkpoint_uri: str | None = None) -> Iterator[Safeguard]:
    """Turn SIGTERM and SIGINT into an orderly stop, and keep a training's state beyond its pod.

    The state is removed when the block ends without an error. Outside of the main thread, where
    Python hands out no signals, only the state is kept.

    Args:
        run: Digest of all that decides the outcome; equal runs share their state.
        checkpoint_uri: Folder for the state of all runs; None takes it from the environment, an
            empty one keeps none.

    Raises:
        Interrupted: a signal came; the message says where the state is.
        StoreError: an earlier state cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        guard = Safeguard(
            checkpoint_folder(run, checkpoint_uri),
            Path(scratch) / "state",
            writes=Ranks.current().is_writer,
        )
        guard.restore()
        with on_signals(guard.on_signal, signal.SIGTERM, signal.SIGINT):
            try:
                yield guard
            except Interrupted:
                guard.keep()
                raise Interrupted(guard.message()) from None
        if guard.folder and guard.writes:
            with contextlib.suppress(StoreError):
                _forget(guard.folder)


def _states(folder: str) -> list[str]:
    """Return the names of the whole states in a folder, oldest first.

    A state is whole once its position is there: that is uploaded last.
    """
    store, prefix = open_store(folder)
    keys = [info.key[len(prefix) :] for info in store.list(prefix)]
    return sorted(key.split("/")[0] for key in keys if key.endswith(f"/{POSITION_FILE}"))


def _forget(folder: str, except_for: str = "") -> None:
    """Remove the states of a folder, of each its position first."""
    store, prefix = open_store(folder)
    keys = [info.key for info in store.list(prefix)]
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{POSITION_FILE}")):
        if key[len(prefix) :].split("/")[0] != except_for:
            store.delete(key)
