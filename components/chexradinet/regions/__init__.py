"""Tables of regions and of their radiomics features, and their stored form.

A regions artifact is a directory of `regions.parquet` and `maps.npy` (float16, network resolution);
a features artifact is a directory of `features.parquet`, row by row that of the regions it was
measured in. What they were made from travels as provenance in the tables' metadata, so that the
shards of one stage, and only those, can be merged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import (
    Head,
    read_table,
    sha256_of,
    write_table,
    write_table_in_parts,
    writing_directory,
)
from chexradinet.config import canonical_json
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.records import FeatureStatus, Region

# Names and order are those of pyradiomics 3.0.1, class by class; a test compares them.
_NAMES = {
    "firstorder": """
        10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum
        MeanAbsoluteDeviation Mean Median Minimum Range RobustMeanAbsoluteDeviation
        RootMeanSquared Skewness TotalEnergy Uniformity Variance
    """,
    "shape2D": """
        Elongation MajorAxisLength MaximumDiameter MeshSurface MinorAxisLength Perimeter
        PerimeterSurfaceRatio PixelSurface Sphericity
    """,
    "glcm": """
        Autocorrelation ClusterProminence ClusterShade ClusterTendency Contrast Correlation
        DifferenceAverage DifferenceEntropy DifferenceVariance Id Idm Idmn Idn Imc1 Imc2
        InverseVariance JointAverage JointEnergy JointEntropy MCC MaximumProbability SumAverage
        SumEntropy SumSquares
    """,
    "glrlm": """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance
        HighGrayLevelRunEmphasis LongRunEmphasis LongRunHighGrayLevelEmphasis
        LongRunLowGrayLevelEmphasis LowGrayLevelRunEmphasis RunEntropy RunLengthNonUniformity
        RunLengthNonUniformityNormalized RunPercentage RunVariance ShortRunEmphasis
        ShortRunHighGrayLevelEmphasis ShortRunLowGrayLevelEmphasis
    """,
    "glszm": """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance
        HighGrayLevelZoneEmphasis LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis
        LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis SizeZoneNonUniformity
        SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis
        SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance
    """,
    "gldm": """
        DependenceEntropy DependenceNonUniformity DependenceNonUniformityNormalized
        DependenceVariance GrayLevelNonUniformity GrayLevelVariance HighGrayLevelEmphasis
        LargeDependenceEmphasis LargeDependenceHighGrayLevelEmphasis
        LargeDependenceLowGrayLevelEmphasis LowGrayLevelEmphasis SmallDependenceEmphasis
        SmallDependenceHighGrayLevelEmphasis SmallDependenceLowGrayLevelEmphasis
    """,
    "ngtdm": """
        Busyness Coarseness Complexity Contrast Strength
    """,
}

NAMES_BY_CLASS = {name: tuple(listed.split()) for name, listed in _NAMES.items()}
"""Feature names of each class."""

FEATURE_CLASSES: tuple[str, ...] = tuple(NAMES_BY_CLASS)
"""The classes, in stored order."""

FEATURE_NAMES: tuple[str, ...] = tuple(
    f"{feature_class}_{name}" for feature_class, names in NAMES_BY_CLASS.items() for name in names
)
"""Columns of every table of features: `<class>_<feature>`."""

BOX_COLUMNS = ("top", "left", "bottom", "right")
"""Half-open box in model pixels; NaN if the status is not `ok`."""

REGION_COLUMNS = (
    "image_id",
    "finding",
    "score",
    *BOX_COLUMNS,
    "peak_row",
    "peak_col",
    "status",
)
"""Columns of `regions.parquet`."""

FEATURE_COLUMNS = ("image_id", "status", *FEATURE_NAMES)
"""Columns of `features.parquet`; the 102 values are NaN if the status is not `ok`."""

_TEXT_COLUMNS = {"image_id", "finding", "status"}

SCHEMA = 1
"""Version of both formats."""

REGIONS_FILE, MAPS_FILE, FEATURES_FILE = "regions.parquet", "maps.npy", "features.parquet"
REGIONS_HEAD, FEATURES_HEAD = Head(REGIONS_FILE, "regions"), Head(FEATURES_FILE, "features")
"""By which a directory is known for one of the two."""

MAPS_DIGEST = "maps_sha256"
"""Key of the provenance that holds the digest of `maps.npy`: each shard has its own."""

SHARD_INDEX, SHARD_COUNT = "shard_index", "shard_count"
"""Keys of the provenance that tell shards apart; after merging they are 0 and 1."""

PRECISION = "precision"
"""Key of the provenance that holds the arithmetic of the maps; without it, float32."""

_OWN_KEYS = {SHARD_INDEX, SHARD_COUNT, MAPS_DIGEST, PRECISION}


@dataclass(frozen=True, slots=True, eq=False)
class FeatureRow:
    """The features of one region."""

    status: FeatureStatus
    values: NDArray[np.float64]
    """In the order of `FEATURE_NAMES`, shape (102,); all NaN if the status is not `OK`."""

    def by_name(self) -> dict[str, float]:
        """Return the features by name; none if the status is not `OK`."""
        known = self.status is FeatureStatus.OK
        return dict(zip(FEATURE_NAMES, self.values.tolist(), strict=True)) if known else {}


def rejected_row(status: FeatureStatus) -> FeatureRow:
    """Return a row without values."""
    return FeatureRow(status, np.full(len(FEATURE_NAMES), np.nan))


def regions_table(
    image_ids: Sequence[str],
    findings: Sequence[str],
    scores: Iterable[float],
    regions: Sequence[Region],
) -> pd.DataFrame:
    """Return the table of regions, one row each; `image_ids` and the others run along them."""
    missing = (np.nan,) * len(BOX_COLUMNS)
    sides = [missing if region.box is None else astuple(region.box) for region in regions]
    frame = pd.DataFrame(sides, columns=list(BOX_COLUMNS), dtype=np.float64)
    peaks = [(region.peak_row, region.peak_column) for region in regions]
    frame[["peak_row", "peak_col"]] = np.asarray(peaks, dtype=np.float64).reshape(-1, 2)
    frame["image_id"] = list(image_ids)
    frame["finding"] = list(findings)
    frame["score"] = np.asarray(list(scores), dtype=np.float64)
    frame["status"] = [region.status.value for region in regions]
    return frame[list(REGION_COLUMNS)]


def features_table(
    image_ids: Sequence[str], statuses: Sequence[str], values: NDArray[np.float64]
) -> pd.DataFrame:
    """Return the table of features; `values` has shape (n, 102)."""
    frame = pd.DataFrame(values, columns=list(FEATURE_NAMES), dtype=np.float64)
    frame.insert(0, "image_id", list(image_ids))
    frame.insert(1, "status", list(statuses))
    return frame


def _checked_table(table: pd.DataFrame, columns: tuple[str, ...], where: Path) -> pd.DataFrame:
    """Return the columns in their order and types.

    Raises:
        ArtifactError: a column is missing or unknown.
    """
    missing, unknown = set(columns) - set(table.columns), set(table.columns) - set(columns)
    if missing or unknown:
        raise ArtifactError(
            f"the table of {where} lacks the columns {sorted(missing)[:5]} and has the unknown "
            f"columns {sorted(unknown)[:5]}; make it with this release"
        )
    kinds = {name: object if name in _TEXT_COLUMNS else np.float64 for name in columns}
    return table[list(columns)].astype(kinds)


@dataclass(frozen=True, kw_only=True)
class RegionsArtifact:
    """Regions as read back."""

    table: pd.DataFrame
    """`REGION_COLUMNS`, one row per region."""
    maps: NDArray[np.float16]
    """The heatmap of each row, shape (n, h, w), memory-mapped and read-only."""
    provenance: dict[str, Any]
    """What the regions were made from."""


@dataclass(frozen=True, kw_only=True)
class FeaturesArtifact:
    """Radiomics features as read back."""

    table: pd.DataFrame
    """`FEATURE_COLUMNS`, one row per region."""
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
        # The digest ties the table to its maps.
        sealed = {**provenance, MAPS_DIGEST: sha256_of(directory / MAPS_FILE)}
        ordered = _checked_table(table, REGION_COLUMNS, directory)
        write_table(directory / REGIONS_FILE, ordered, "regions", SCHEMA, sealed)


def read_regions(path: Path) -> RegionsArtifact:
    """Read a regions artifact.

    Raises:
        ArtifactError: a file is missing, of another version, truncated or changed, or table and
            maps do not belong together.
    """
    table, provenance = read_table(path / REGIONS_FILE, "regions", SCHEMA)
    table = _checked_table(table, REGION_COLUMNS, path)
    maps_path = path / MAPS_FILE
    if sha256_of(maps_path) != provenance.get(MAPS_DIGEST):
        raise ArtifactError(
            f"{maps_path} is not the file that {REGIONS_FILE} was written with (its SHA-256 "
            "differs); it was truncated or changed: run the heatmap stage again"
        )
    maps = np.load(maps_path, mmap_mode="r", allow_pickle=False)
    _check_maps(maps.ndim, len(maps), len(table), path)
    return RegionsArtifact(table=table, maps=maps, provenance=provenance)


def write_features(
    target: Path, tables: Iterable[pd.DataFrame], provenance: Mapping[str, Any]
) -> None:
    """Write a features artifact, atomically.

    Args:
        target: Directory to make or replace.
        tables: `FEATURE_COLUMNS`, part by part, at least one; rows in the order of the regions.
        provenance: JSON-ready record of what the features were made from.

    Raises:
        ArtifactError: the table's columns are others.
    """
    ordered = (_checked_table(table, FEATURE_COLUMNS, target) for table in tables)
    with writing_directory(target, FEATURES_HEAD) as directory:
        path = directory / FEATURES_FILE
        write_table_in_parts(path, ordered, "features", SCHEMA, provenance)


def read_features(path: Path) -> FeaturesArtifact:
    """Read a features artifact.

    Raises:
        ArtifactError: the table is missing, of another version, truncated, or has other columns.
    """
    table, provenance = read_table(path / FEATURES_FILE, "features", SCHEMA)
    table = _checked_table(table, FEATURE_COLUMNS, path)
    return FeaturesArtifact(table=table, provenance=provenance)


def _check_maps(dimensions: int, num_maps: int, num_rows: int, where: Path) -> None:
    if dimensions != 3 or num_maps != num_rows:
        raise ArtifactError(
            f"the maps of {where} have {dimensions} axes and {num_maps} entries, the table has "
            f"{num_rows} rows; expected (n, h, w) maps, one per row: make both in one run"
        )


def read_feature_shards(paths: Sequence[Path]) -> FeaturesArtifact:
    """Read the shards of one radiomics stage, given in any order, as one features artifact.

    Raises:
        ArtifactError: a shard is damaged, missing or given twice.
        MismatchError: the shards were made from different inputs or settings.
    """
    shards = [read_features(path) for path in paths]
    order, provenance = _arranged([shard.provenance for shard in shards])
    table = pd.concat([shards[position].table for position in order], ignore_index=True)
    return FeaturesArtifact(table=table, provenance=provenance)


def _arranged(provenances: Sequence[Mapping[str, Any]]) -> tuple[list[int], dict[str, Any]]:
    """Return the positions in shard order and what all shards share.

    Raises:
        ArtifactError: a shard is missing, given twice, or there is none at all.
        MismatchError: the shards disagree in anything but their index.
    """
    if not provenances:
        raise ArtifactError("no shard was given; name the outputs of all shards of the stage")
    shared = [
        {key: value for key, value in provenance.items() if key not in _OWN_KEYS}
        for provenance in provenances
    ]
    for other in shared[1:]:
        _require_equal(shared[0], other)
    counts = {provenance.get(SHARD_COUNT, 1) for provenance in provenances}
    indices = [int(provenance.get(SHARD_INDEX, 0)) for provenance in provenances]
    if len(counts) != 1 or sorted(indices) != list(range(int(next(iter(counts))))):
        raise ArtifactError(
            f"shards {sorted(indices)} of {sorted(counts)} were given; each shard of "
            "one run is needed exactly once: check the list of inputs, and run what is missing"
        )
    order = sorted(range(len(indices)), key=indices.__getitem__)
    return order, {**shared[0], SHARD_INDEX: 0, SHARD_COUNT: 1}


def _require_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    differing = sorted(
        key
        for key in one.keys() | other.keys()
        if canonical_json(one.get(key)) != canonical_json(other.get(key))
    )
    if differing:
        raise MismatchError(
            f"the shards differ in {differing}; merge only what one stage made in one run from the "
            "same inputs and settings"
        )
