"""Trying again: exponential backoff with jitter, bounded by a total time.

The waits are drawn from the upper half of their range, so that many workers that lost the store at
once do not all come back at once.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_WAIT_S = 0.2
"""Longest wait before the second attempt, in seconds; doubles with each further one."""
LONGEST_WAIT_S = 10.0
"""Longest wait between two attempts, in seconds."""

_random = random.SystemRandom()
_logger = logging.getLogger(__name__)


class Backoff:
    """The waits between attempts of one operation."""

    def __init__(
        self,
        total_s: float,
        *,
        where: str = "storage",
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_s = total_s
        self._where = where
        self._sleep = sleep
        self._clock = clock
        self._failures = 0
        self._deadline: float | None = None

    def wait(self, error: Exception) -> bool:
        """Wait before the next attempt; return False, at once, if the time is spent."""
        now = self._clock()
        if self._deadline is None:
            self._deadline = now + self._total_s
        left_s = self._deadline - now
        if left_s <= 0:
            return False
        ceiling_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(self._failures, 20))
        self._failures += 1
        wait_s = min(left_s, _random.uniform(ceiling_s / 2, ceiling_s))
        # The error's class only: its text may hold what does not belong into a log.
        _logger.warning(
            "%s failed with %s (attempt %d); trying again in %.1f s, for %.0f s more",
            self._where, type(error).__name__, self._failures, wait_s, left_s,
        )  # fmt: skip
        self._sleep(wait_s)
        return True

    def reset(self) -> None:
        """Start over: the operation made progress."""
        self._failures = 0
        self._deadline = None


def retrying(
    operation: Callable[[], T], is_transient: Callable[[Exception], bool], backoff: Backoff
) -> T:
    """Call an operation until it succeeds, fails for good, or the time is spent.

    Args:
        operation: What to do; must be safe to do twice.
        is_transient: Whether an error is worth another attempt.
        backoff: The waits.

    Raises:
        Exception: the last error of the operation, as it was raised.
    """
    while True:
        try:
            return operation()
        except Exception as error:
            if not is_transient(error) or not backoff.wait(error):
                raise
