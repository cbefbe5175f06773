"""Accelerators that a stage asked for, and the processes that train on them."""

import logging
import os
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from chexradinet.config import require
from chexradinet.errors import ConfigError, Interrupted, TrainingError

_log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: one of them validates and writes meanwhile."""


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
        count: Number of processes.
        function: Importable by name; it finds its place by `Ranks.current`.
        arguments: Picklable, the same for each process.

    Raises:
        TrainingError: a process failed or died; the others are ended.
        Interrupted: this process was asked to end; the others were asked as well and have ended.
    """
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
