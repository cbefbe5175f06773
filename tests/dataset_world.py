"""Data sets that tests write image by image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chexradinet.artifacts import writing_directory
from chexradinet.dataset import DATASET_HEAD, DatasetInfo
from chexradinet.dataset.writing import DatasetWriter


@contextmanager
def writing_dataset(
    target: Path, info: DatasetInfo, *, shard_size: int = 4096
) -> Iterator[DatasetWriter]:
    """Yield a writer whose data set appears at `target` when the block ends without an error."""
    with writing_directory(target, DATASET_HEAD) as directory:
        writer = DatasetWriter(directory, info, shard_size)
        try:
            yield writer
            writer.finish()
        finally:
            writer.abandon()
