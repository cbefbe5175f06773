"""Stored form of regions and of their radiomics features.

A regions artifact is a directory of `regions.parquet` and `maps.npy` (float16, network resolution);
a features artifact is a directory of `features.parquet`, row by row that of the regions it was
measured in. What they were made from travels as provenance in the tables' metadata, so that the
shards of one stage, and only those, can be merged (`regions.shards`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import read_table, sha256_of, write_table, writing_directory
from chexradinet.errors import ArtifactError
from chexradinet.regions.feature_names import FEATURE_NAMES
from chexradinet.regions.shards import MAPS_DIGEST, arranged
from chexradinet.regions.tables import FEATURE_COLUMNS, REGION_COLUMNS, checked_table
from chexradinet.replacing import Head

SCHEMA = 1
"""Version of both formats."""

REGIONS_FILE, MAPS_FILE, FEATURES_FILE = "regions.parquet", "maps.npy", "features.parquet"
REGIONS_HEAD, FEATURES_HEAD = Head(REGIONS_FILE, "regions"), Head(FEATURES_FILE, "features")
"""By which a directory is known for one of the two."""


@dataclass(frozen=True, kw_only=True)
class RegionsArtifact:
    """Regions as read back."""

    table: pd.DataFrame
    """`REGION_COLUMNS`, one row a region."""
    maps: NDArray[np.float16]
    """The heatmap of each row, shape (n, h, w), memory-mapped and read-only."""
    provenance: dict[str, Any]
    """What the regions were made from."""


@dataclass(frozen=True, kw_only=True)
class FeaturesArtifact:
    """Radiomics features as read back."""

    table: pd.DataFrame
    """`FEATURE_COLUMNS`, one row a region."""
    values: NDArray[np.float64]
    """The 102 features in the order of `FEATURE_NAMES`, shape (n, 102); NaN where not `ok`."""
    provenance: dict[str, Any]
    """What the features were made from."""


def write_regions(
    target: Path,
    table: pd.DataFrame,
    maps: NDArray[np.floating[Any]],
    provenance: Mapping[str, Any],
) -> None:
    """Write a regions artifact, atomically.

    Args:
        target: Directory to make or replace.
        table: `REGION_COLUMNS`, n rows.
        maps: Heatmaps of the rows, shape (n, h, w); stored as float16.
        provenance: JSON-ready record of what the regions were made from.

    Raises:
        ArtifactError: the table's columns are others, table and maps differ in length, or a finite
            value is beyond float16.
    """
    _check_maps(maps.ndim, len(maps), len(table), target)
    with np.errstate(over="ignore"):
        halved = maps.astype(np.float16)
    if not np.array_equal(np.isfinite(halved), np.isfinite(maps)):
        raise ArtifactError(
            "a heatmap holds values beyond float16's 65504; divide the maps by a positive constant "
            "before writing: regions do not depend on it"
        )
    with writing_directory(target, REGIONS_HEAD) as directory:
        np.save(directory / MAPS_FILE, halved)
        _write_regions_table(directory, table, provenance)


def _write_regions_table(
    directory: Path, table: pd.DataFrame, provenance: Mapping[str, Any]
) -> None:
    """Write `regions.parquet` beside a complete `maps.npy`, whose digest it keeps."""
    sealed = {**provenance, MAPS_DIGEST: sha256_of(directory / MAPS_FILE)}
    ordered = checked_table(table, REGION_COLUMNS, directory)
    write_table(directory / REGIONS_FILE, ordered, "regions", SCHEMA, sealed)


def read_regions(path: Path) -> RegionsArtifact:
    """Read a regions artifact.

    Raises:
        ArtifactError: a file is missing, of another version, truncated or changed, or table and
            maps do not belong together.
    """
    table, provenance = read_table(path / REGIONS_FILE, "regions", SCHEMA)
    table = checked_table(table, REGION_COLUMNS, path)
    maps_path = path / MAPS_FILE
    if sha256_of(maps_path) != provenance.get(MAPS_DIGEST):
        raise ArtifactError(
            f"{maps_path} is not the file that {REGIONS_FILE} was written with (its SHA-256 "
            "differs); it was truncated or changed: run the heatmap stage again"
        )
    maps = np.load(maps_path, mmap_mode="r", allow_pickle=False)
    _check_maps(maps.ndim, len(maps), len(table), path)
    return RegionsArtifact(table=table, maps=maps, provenance=provenance)


def write_features(target: Path, table: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Write a features artifact, atomically.

    Args:
        target: Directory to make or replace.
        table: `FEATURE_COLUMNS`; row i belongs to row i of the regions.
        provenance: JSON-ready record of what the features were made from.

    Raises:
        ArtifactError: the table's columns are others.
    """
    ordered = checked_table(table, FEATURE_COLUMNS, target)
    with writing_directory(target, FEATURES_HEAD) as directory:
        write_table(directory / FEATURES_FILE, ordered, "features", SCHEMA, provenance)


def read_features(path: Path) -> FeaturesArtifact:
    """Read a features artifact.

    Raises:
        ArtifactError: the table is missing, of another version, truncated, or has other columns.
    """
    table, provenance = read_table(path / FEATURES_FILE, "features", SCHEMA)
    table = checked_table(table, FEATURE_COLUMNS, path)
    values = table[list(FEATURE_NAMES)].to_numpy(dtype=np.float64)
    return FeaturesArtifact(table=table, values=values, provenance=provenance)


def _check_maps(dimensions: int, num_maps: int, num_rows: int, where: Path) -> None:
    if dimensions != 3 or num_maps != num_rows:
        raise ArtifactError(
            f"the maps of {where} have {dimensions} axes and {num_maps} entries, the table has "
            f"{num_rows} rows; needed are (n, h, w) maps, one a row: make both in one run"
        )


def merge_regions(paths: Sequence[Path], target: Path) -> None:
    """Join the shards of one heatmap stage, given in any order, into one regions artifact.

    Raises:
        ArtifactError: a shard is damaged, missing or given twice, or the maps differ in size.
        MismatchError: the shards were made from different inputs or settings.
    """
    shards = [read_regions(path) for path in paths]
    order, provenance = arranged([shard.provenance for shard in shards])
    shards = [shards[position] for position in order]
    sizes = {shard.maps.shape[1:] for shard in shards if len(shard.maps)}
    if len(sizes) > 1:
        raise ArtifactError(
            f"the shards' maps are {sorted(sizes)} cells; they must be alike: make them again"
        )
    size = sizes.pop() if sizes else shards[0].maps.shape[1:]
    table = pd.concat([shard.table for shard in shards], ignore_index=True)
    with writing_directory(target, REGIONS_HEAD) as directory:
        # Filled shard by shard through the file, so memory does not grow with the data set.
        merged = np.lib.format.open_memmap(
            directory / MAPS_FILE, mode="w+", dtype=np.float16, shape=(len(table), *size)
        )
        start = 0
        for shard in shards:
            merged[start : start + len(shard.maps)] = shard.maps
            start += len(shard.maps)
        merged.flush()
        del merged
        _write_regions_table(directory, table, provenance)


def merge_features(paths: Sequence[Path], target: Path) -> None:
    """Join the shards of one radiomics stage, given in any order, into one features artifact.

    Raises:
        ArtifactError: a shard is damaged, missing or given twice.
        MismatchError: the shards were made from different inputs or settings.
    """
    shards = [read_features(path) for path in paths]
    order, provenance = arranged([shard.provenance for shard in shards])
    table = pd.concat([shards[position].table for position in order], ignore_index=True)
    write_features(target, table, provenance)
