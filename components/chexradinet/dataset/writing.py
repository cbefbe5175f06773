"""Write a data set directory with bounded memory, so that it appears whole or not at all."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from chexradinet.artifacts import sha256_of, write_document, write_table, writing_directory
from chexradinet.config import canonical_json, require
from chexradinet.dataset.schema import (
    DATASET_HEAD,
    DOCUMENT,
    ID_COLUMNS,
    KIND,
    MANIFEST,
    REJECTED,
    SCHEMA,
    DatasetInfo,
    ImageRecord,
    Rejection,
    count,
)
from chexradinet.dataset.shards import Pixels, ShardWriter, shard_name
from chexradinet.errors import LabelTableError
from chexradinet.records import Split


def _label(record: ImageRecord, finding: str) -> float:
    value = float(record.labels.get(finding, math.nan))
    if value not in (0.0, 1.0) and not math.isnan(value):
        raise LabelTableError(
            f"image {record.image_id!r} has {finding} = {value}; a label is 1, 0 or NaN (unknown)"
        )
    return value


class DatasetWriter:
    """Takes images and rejections one by one; `writing_dataset` makes and completes it."""

    def __init__(
        self, directory: Path, info: DatasetInfo, shard_size: int, num_full_shards: int = 0
    ) -> None:
        """Write to a directory, after so many full shards that it already holds."""
        require(shard_size >= 1, "shard_size", shard_size, "at least 1")
        self.directory = directory
        """Where files are written, among them those for `attach`."""
        self.info = info
        """What is known so far; complete once the `with` block has ended."""
        side = info.preprocessing.image_side
        self._shards = ShardWriter(directory, side, shard_size, num_full_shards)
        self._attached: list[str] = []
        self._splits: Sequence[Split] | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._rejections: list[Rejection] = []
        self._seen: set[str] = set()

    def add(self, record: ImageRecord, pixels: Pixels | None) -> None:
        """Append one image.

        Args:
            record: What is known of it; labels and boxes of other findings are left out.
            pixels: Model pixels, shape (H, W), uint8; None where a full shard already holds them.

        Raises:
            ConfigError: the pixels are not those of this data set's preprocessing.
            LabelTableError: the `image_id` was added before, or a label is not 1, 0 or NaN.
        """
        if record.image_id in self._seen:
            raise LabelTableError(
                f"image {record.image_id!r} appears twice; remove one of its rows"
            )
        labels = tuple(_label(record, finding) for finding in self.info.findings)
        if pixels is not None:
            self._shards.append(pixels)
        self._seen.add(record.image_id)
        boxes = [
            {"finding": item.finding, **asdict(item.box)}
            for item in record.boxes
            if item.finding in self.info.findings
        ]
        facts = [getattr(record, name) for name in ID_COLUMNS]
        geometry = canonical_json(record.geometry.as_dict())
        self._rows.append((*facts, *labels, canonical_json(boxes), geometry))

    def reject(self, rejection: Rejection) -> None:
        """Note a file that does not enter."""
        self._rejections.append(rejection)

    @property
    def num_entries(self) -> int:
        """Images and rejections so far."""
        return len(self._rows) + len(self._rejections)

    @property
    def num_full_shards(self) -> int:
        """Shards that are full and closed."""
        return self._shards.num_full

    def attach(self, name: str) -> None:
        """Make a file that was written into `directory` a part of the data set."""
        self._attached.append(name)

    def assign_splits(self, splits: Sequence[Split]) -> None:
        """Replace the split of every image, in the order they were added."""
        self._splits = splits

    def finish(self) -> DatasetInfo:
        """Write tables and document; `writing_dataset` calls it."""
        self._shards.close()
        manifest = self._manifest()
        rejected = pd.DataFrame(
            [(item.source_uri, item.reason.value, item.detail) for item in self._rejections],
            columns=["source_uri", "reason", "detail"],
            dtype="object",
        )
        write_table(self.directory / MANIFEST, manifest, "dataset-manifest", SCHEMA)
        write_table(self.directory / REJECTED, rejected, "dataset-rejected", SCHEMA)
        shards = [shard_name(number) for number in range(len(self._shards.sizes))]
        names = (MANIFEST, REJECTED, *self._attached, *shards)
        files = {name: sha256_of(self.directory / name) for name in names}
        self.info = replace(
            self.info,
            counts=count(manifest, self.info.findings, self._rejections),
            shard_sizes=tuple(self._shards.sizes),
            files=files,
        )
        content = {**self.info.as_document(), "digest": self.info.digest}
        write_document(self.directory / DOCUMENT, KIND, SCHEMA, content)
        return self.info

    def abandon(self) -> None:
        """Close what is open after an error."""
        self._shards.close()

    def _manifest(self) -> pd.DataFrame:
        columns = [*ID_COLUMNS, *self.info.findings, "boxes", "geometry"]
        frame = pd.DataFrame(self._rows, columns=columns, dtype="object")
        kinds = dict.fromkeys(self.info.findings, "float32") | {"age": "float64"}
        if self._splits is not None:
            frame["split"] = list(self._splits)
        for name in ("view", "split"):
            frame[name] = [str(value) for value in frame[name]]
        return frame.astype(kinds)


@contextmanager
def writing_dataset(
    target: Path, info: DatasetInfo, *, shard_size: int = 4096
) -> Iterator[DatasetWriter]:
    """Yield a writer whose data set appears at `target` when the block ends without an error.

    Args:
        target: The directory to make; an older one is replaced in one step.
        info: Findings, preprocessing, source and split seed; the writer fills in the rest, and
            `writer.info` is complete after the block.
        shard_size: Most images in a shard, at least 1.

    Raises:
        ConfigError: `shard_size` is below 1, or `target` holds something else than a data set.
    """
    with writing_directory(target, DATASET_HEAD) as directory:
        writer = DatasetWriter(directory, info, shard_size)
        try:
            yield writer
            writer.finish()
        finally:
            writer.abandon()
