"""Row numbers of batches: whole batches are sliced from the shards, never single images."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chexradinet.config import require


def iter_batches(
    rows: NDArray[np.int64], batch_size: int, seed: int | None = None, *, drop_last: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of one pass over a split, a batch at a time.

    Args:
        rows: Rows to visit, each once, shape (N,).
        batch_size: Rows of a batch, at least 1.
        seed: Of the order; the same seed gives the same order on every machine. None keeps `rows`.
        drop_last: Leave out the last batch when it is not full.

    Yields:
        Rows of shape (B,), B = `batch_size` except for a last batch that is kept.

    Raises:
        ConfigError: `batch_size` is below 1.
    """
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    order = np.asarray(rows, dtype=np.int64)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    stop = len(order) - len(order) % batch_size if drop_last else len(order)
    for start in range(0, stop, batch_size):
        yield order[start : start + batch_size]
