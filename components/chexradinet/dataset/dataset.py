"""The data set directory: what `ingest` writes and every later stage reads.

    dataset.json         findings, preprocessing, counts, source, SHA-256 of every other file
    manifest.parquet     a row an image, in the order of the shards
    images-NNNNN.npy     pixels, uint8 (n, H, W)
    rejected.parquet     what did not enter, and why

Nothing in it depends on the clock or on the machine: the same input gives the same bytes, and so
the same digest.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import read_document, read_table, sha256_of
from chexradinet.config import PreprocessingConfig, QualityConfig
from chexradinet.dataset.schema import (
    DOCUMENT,
    ID_COLUMNS,
    KIND,
    MANIFEST,
    REJECTED,
    SCHEMA,
    DatasetInfo,
    ImageRecord,
    Rejection,
    document_digest,
)
from chexradinet.dataset.shards import Pixels, gather, open_shards
from chexradinet.dataset.writing import DatasetWriter, writing_dataset
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.records import Box, Geometry, LabelledBox, Split

__all__ = [
    "Dataset",
    "DatasetInfo",
    "DatasetWriter",
    "ImageRecord",
    "Rejection",
    "open_dataset",
    "writing_dataset",
]


class Dataset:
    """A data set on disk, its pixels mapped and never loaded as a whole."""

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.path = path
        self.info = info
        self.manifest, _ = read_table(path / MANIFEST, "dataset-manifest", SCHEMA)
        """A row an image, columns as in `ID_COLUMNS`, then findings, `boxes` and `geometry`."""
        columns = [*ID_COLUMNS, *info.findings, "boxes", "geometry"]
        if list(self.manifest.columns) != columns or len(self.manifest) != sum(info.shard_sizes):
            raise ArtifactError(
                f"{path / MANIFEST} has {len(self.manifest)} rows and columns "
                f"{list(self.manifest.columns)}, but {DOCUMENT} says {sum(info.shard_sizes)} rows "
                f"and {columns}; make the data set again"
            )
        self._shards = open_shards(path, info.shard_sizes, info.preprocessing.image_side)

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def digest(self) -> str:
        """Identity of the data set."""
        return self.info.digest

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """Labels of shape (N, F): 1 present, 0 absent, NaN unknown."""
        return self.manifest[list(self.info.findings)].to_numpy(dtype=np.float32)

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the rows of one split, ascending."""
        return np.flatnonzero((self.manifest["split"] == split.value).to_numpy()).astype(np.int64)

    def images(self, rows: NDArray[np.int64]) -> Pixels:
        """Copy images of shape (B, H, W) out of the memory maps, in the order of `rows`.

        Raises:
            IndexError: a row is negative or beyond the last.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        return gather(self._shards, wanted, self.info.preprocessing.image_side)

    def boxes(self, row: int) -> tuple[LabelledBox, ...]:
        """Return the boxes of one image, in pixels of the data set."""
        found = json.loads(self.manifest["boxes"].iloc[row])
        return tuple(LabelledBox(item.pop("finding"), Box(**item)) for item in found)

    def geometry(self, row: int) -> Geometry:
        """Return the map from one image's pixels to those of its original."""
        return Geometry(**json.loads(self.manifest["geometry"].iloc[row]))

    def row_of(self, image_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the row of each image, in the order given.

        Raises:
            MismatchError: an image is not in this data set.
        """
        wanted = list(image_ids)
        rows = self._index.get_indexer(pd.Index(wanted, dtype="object")).astype(np.int64)
        if (rows < 0).any():
            unknown = [name for name, row in zip(wanted, rows, strict=True) if row < 0]
            raise MismatchError(
                f"{len(unknown)} of {len(wanted)} images are not in data set {self.digest[:12]}, "
                f"the first is {unknown[0]!r}; use the data set that the table was made from"
            )
        return rows

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """What did not enter: `source_uri`, `reason`, `detail`."""
        return read_table(self.path / REJECTED, "dataset-rejected", SCHEMA)[0]

    @cached_property
    def _index(self) -> "pd.Index[Any]":
        return pd.Index(self.manifest["image_id"].to_numpy(dtype="object"))


def _read_info(path: Path) -> DatasetInfo:
    document = read_document(path / DOCUMENT, KIND, SCHEMA)
    digest = document.pop("digest", None)
    if digest != document_digest(document):
        raise ArtifactError(
            f"{path / DOCUMENT} does not match its own digest; it was changed or cut short, "
            "make the data set again"
        )
    info = _info_of(document)
    if info.preprocessing_digest != document["preprocessing_digest"]:
        raise ArtifactError(
            f"{path / DOCUMENT} has preprocessing {document['preprocessing_digest'][:12]}, but "
            f"this release computes {info.preprocessing_digest[:12]} from the same settings; make "
            "the data set again"
        )
    return info


def _info_of(document: Mapping[str, Any]) -> DatasetInfo:
    return DatasetInfo(
        findings=tuple(document["findings"]),
        preprocessing=PreprocessingConfig(**document["preprocessing"]),
        source=document["source"],
        split_seed=document["split_seed"],
        counts=document["counts"],
        shard_sizes=tuple(document["shard_sizes"]),
        files=document["files"],
        quality=QualityConfig(**document["quality"]) if "quality" in document else None,
        deidentified=document.get("deidentified", False),
        ingest=document.get("ingest", {}),
    )


def open_dataset(path: Path, verify: bool = True) -> Dataset:
    """Open a data set directory.

    Args:
        path: The directory.
        verify: Read every file and compare its SHA-256 with `dataset.json`.

    Raises:
        ArtifactError: a file is missing, of another kind or version, or a byte of it changed.
    """
    info = _read_info(path)
    for name, expected in info.files.items():
        if not (path / name).is_file():
            raise ArtifactError(f"{path / name} is missing; make the data set again")
        if verify and sha256_of(path / name) != expected:
            raise ArtifactError(
                f"the bytes of {path / name} are not those that {DOCUMENT} names; the file was "
                "changed or cut short, make the data set again"
            )
    return Dataset(path, info)
