"""The processes of a training: the accelerators that they run on, and what survives their end.

State is kept below the URI in `CHEXRADINET_CHECKPOINT_URI`, in a folder named by the run's digest:
after each epoch, every few minutes within one, and when the process is asked to end. The same run,
started again, continues from there and comes to the same weights.
"""

import contextlib
import logging
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from chexradinet.artifacts import read_document
from chexradinet.config import require
from chexradinet.errors import (
    ConfigError,
    Interrupted,
    StoreError,
    StoreIntegrityError,
    StoreNotFoundError,
    TrainingError,
)
from chexradinet.model.checkpoint import KIND, POSITION_FILE, SCHEMA
from chexradinet.model.distributed import Ranks
from chexradinet.parallel import on_signals
from chexradinet.store import download_directory, open_store, upload_directory
from chexradinet.store.uri import CHECKPOINT_VARIABLE, checkpoint_folder, join_uri

_log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: one of them validates and writes meanwhile."""

SAVE_INTERVAL_S = 300.0
"""Time within an epoch after which its state is kept; a kill without notice loses no more."""


def check_accelerator(accelerator_type: str, accelerators: str | int) -> bool:
    """Tell whether a stage has what it asked for, and warn if it will run on the processor.

    Args:
        accelerator_type: Kubernetes resource name, such as `nvidia.com/gpu`; empty asks for none.
        accelerators: Number that was asked for.

    Raises:
        ConfigError: the number is not one.
    """
    if _asked(accelerator_type, accelerators) and not torch.cuda.is_available():
        _log.warning(
            "asked for %s x %s, but torch sees no accelerator: this stage runs on the processor; "
            "check the node's driver and device plug-in, or set accelerator_count to 0",
            accelerators,
            accelerator_type,
        )
        return False
    return True


def num_processes(accelerator_type: str, accelerators: str | int) -> int:
    """Return how many processes are to train: one per accelerator, one without any.

    The pipeline asks for one by default; on a machine that has none, training warns and runs on the
    processor. Who asks for several needs them.

    Args:
        accelerator_type: Kubernetes resource name; empty asks for none.
        accelerators: Number that was asked for.

    Raises:
        ConfigError: the number is not one, or more than torch sees.
    """
    asked, visible = _asked(accelerator_type, accelerators), torch.cuda.device_count()
    if asked == 1:
        check_accelerator(accelerator_type, accelerators)
    elif asked > visible:
        raise ConfigError(
            f"accelerator_count is {asked}, but torch sees {visible} of {accelerator_type}; check "
            "the node's driver and device plug-in, or ask for what one node has (0 trains on the "
            "processor)"
        )
    return max(asked, 1)


def _asked(accelerator_type: str, accelerators: str | int) -> int:
    text = str(accelerators).strip()
    require(text.isdecimal(), "accelerator_count", accelerators, "a whole number of at least 0")
    return int(text) if accelerator_type else 0


def on_processes(count: int, function: Callable[..., object], *arguments: object) -> None:
    """Run a function in several processes that form a group, and wait for all of them.

    Args:
        count: Number of processes; with 1 it runs in this one.
        function: Importable by name; it finds its place by `Ranks.current`.
        arguments: Picklable, the same for each process.

    Raises:
        TrainingError: a process failed or died; the others are ended.
        Interrupted: this process was asked to end; the others were asked as well and have ended.
    """
    if count == 1:
        function(*arguments)
        return
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
    )
    level = logging.getLogger().getEffectiveLevel()
    try:
        elastic_launch(config, join_group)(level, function, *arguments)
    except SignalException as error:
        raise Interrupted(
            f"{error.sigval.name} ended the training; if a checkpoint folder is set, its state is "
            "kept there: run the same again to continue"
        ) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TrainingError(
            f"process {rank} of {count} ended the training: {_reason(failure.message)}; run again "
            "to continue from the last state that was kept"
        ) from error


def _reason(message: Any) -> str:  # noqa: ANN401
    """Return what a process said last, in a line."""
    reason = message.get("message", message) if isinstance(message, dict) else message
    return str(reason).strip().splitlines()[-1] if str(reason).strip() else "no reason was given"


@record
def join_group(level: int, function: Callable[..., object], *arguments: object) -> None:
    """Run a function in a process that an elastic launcher started, as one of its group."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif os.environ["GROUP_WORLD_SIZE"] == "1":  # one launcher, so one machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT)
    function(*arguments)
    distributed.destroy_process_group()


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
