"""Pixels of a data set: `images-NNNNN.npy`, written one image at a time, read through memory maps.

A shard is an ordinary NumPy file of shape (n, H, W) uint8, so that any tool opens it, and so that a
shuffled batch is a gather from mapped pages: nothing is decoded twice.
"""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from chexradinet.errors import ArtifactError, ConfigError

Pixels = NDArray[np.uint8]
"""8-bit grey levels, 0 black."""


def shard_name(number: int) -> str:
    """Return the file name of a shard; numbers start at 0."""
    return f"images-{number:05d}.npy"


class ShardWriter:
    """Append images to numbered shards; holds one image in memory at a time.

    With `num_full` it goes on after that many full shards that are already in the directory.
    """

    def __init__(
        self, directory: Path, image_side: int, shard_size: int, num_full: int = 0
    ) -> None:
        self._directory = directory
        self._side = image_side
        self._shard_size = shard_size
        self._stream: IO[bytes] | None = None
        self.sizes: list[int] = [shard_size] * num_full

    def append(self, pixels: Pixels) -> None:
        """Write one image of shape (H, W).

        Raises:
            ConfigError: the image is not uint8 or not of the data set's side.
        """
        if pixels.dtype != np.uint8 or pixels.shape != (self._side, self._side):
            raise ConfigError(
                f"image is {pixels.dtype} of shape {pixels.shape}; this data set holds uint8 of "
                f"shape {(self._side, self._side)}: call fit_to_model first"
            )
        if self._stream is None:
            self._stream = (self._directory / shard_name(len(self.sizes))).open("wb")
            self.sizes.append(0)
            self._write_header()
        self._stream.write(np.ascontiguousarray(pixels).data)
        self.sizes[-1] += 1
        if self.sizes[-1] == self._shard_size:
            self.close()

    @property
    def num_full(self) -> int:
        """Shards that are full and closed."""
        return len(self.sizes) - int(self._stream is not None)

    def close(self) -> None:
        """Put the number of images into the open shard's header and close it."""
        if self._stream is None:
            return
        self._stream.seek(0)
        self._write_header()
        self._stream.close()
        self._stream = None

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow in place: both headers are as long.
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": (self.sizes[-1], self._side, self._side),
        }
        if self._stream is not None:
            np.lib.format.write_array_header_1_0(self._stream, header)


def open_shards(directory: Path, sizes: Sequence[int], image_side: int) -> list[Pixels]:
    """Map every shard of a data set read-only, without reading it.

    Raises:
        ArtifactError: a shard is missing, cut short or of another shape.
    """
    shards = []
    for number, size in enumerate(sizes):
        path = directory / shard_name(number)
        try:
            shard = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} is missing; make the data set again") from error
        except (ValueError, EOFError, OSError) as error:
            raise ArtifactError(f"{path} is no whole shard ({error}); make it again") from error
        needed = (size, image_side, image_side)
        if shard.shape != needed or shard.dtype != np.uint8:
            raise ArtifactError(
                f"{path} holds {shard.dtype} of shape {shard.shape}, but dataset.json says uint8 "
                f"of shape {needed}; make the data set again"
            )
        shards.append(shard)
    return shards


def gather(shards: Sequence[Pixels], rows: NDArray[np.int64], image_side: int) -> Pixels:
    """Copy rows out of the shards, in the order given.

    Args:
        shards: Memory maps of shape (n, H, W); row 0 is the first image of the first shard.
        rows: Row numbers of the data set, shape (B,), repeats allowed.
        image_side: H and W, in pixels.

    Returns:
        Images of shape (B, H, W).

    Raises:
        IndexError: a row is negative or beyond the last.
    """
    ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(rows) and (rows.min() < 0 or rows.max() >= total):
        raise IndexError(f"rows {rows.min()} to {rows.max()} asked of a data set of {total} images")
    images = np.empty((len(rows), image_side, image_side), dtype=np.uint8)
    if len(rows) == 1:
        number = bisect.bisect_right(ends.tolist(), int(rows[0]))
        start = int(ends[number]) - len(shards[number])
        images[0] = shards[number][int(rows[0]) - start]
        return images
    numbers = np.searchsorted(ends, rows, side="right")
    for number in np.unique(numbers):
        chosen = np.flatnonzero(numbers == number)
        start = ends[number] - len(shards[number])
        images[chosen] = shards[number][rows[chosen] - start]
    return images
