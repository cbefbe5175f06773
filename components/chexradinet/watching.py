"""A training's figures while it goes on: how long its stages take, and whether a GPU is used."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chexradinet.monitoring import (
    TrainingTelemetry,
    is_watched,
    push,
    read_gpu_utilisation,
)

PUSH_INTERVAL_S = 60.0
"""Seconds between two pushes of a training."""
BACK_OFF_S = 600.0
"""Seconds after a push that failed: a gateway that is away must not slow a training down."""


@contextmanager
def watched(stage: str) -> Iterator[None]:
    """Push how long a stage of the training pipeline took, once it has ended well.

    Args:
        stage: One of `run_figures.STAGES`.
    """
    started = time.monotonic()
    yield
    push(TrainingTelemetry(stage_seconds={stage: time.monotonic() - started}))


class Heartbeat:
    """Progress of `fit` that also pushes, once a minute, that it goes on and how busy GPUs are."""

    def __init__(self, progress: Callable[[int, int, float], None] | None) -> None:
        self._progress = progress
        self._next_s = 0.0

    def __call__(self, step: int, num_steps: int, loss: float) -> None:
        """Note a step, the number of steps and the loss."""
        if self._progress is not None:
            self._progress(step, num_steps, loss)
        if is_watched() and time.monotonic() >= self._next_s:
            arrived = push(TrainingTelemetry(gpu_utilisation_ratio=read_gpu_utilisation()))
            self._next_s = time.monotonic() + (PUSH_INTERVAL_S if arrived else BACK_OFF_S)
