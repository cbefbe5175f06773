"""Stored regions and features: round trip, damage, and the merging of shards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from chexradinet.artifacts import write_table
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.records import Box, Region, RegionStatus
from chexradinet.regions import (
    FEATURE_NAMES,
    REGION_COLUMNS,
    features_table,
    read_feature_shards,
    read_features,
    read_regions,
    regions_table,
    write_features,
    write_regions,
)

PROVENANCE: dict[str, Any] = {"dataset": "d" * 64, "bundle": "b" * 64, "region": {"threshold": 0.6}}
FOUND = Region(
    status=RegionStatus.OK, box=Box(1.0, 2.0, 30.0, 40.0), peak_row=10.5, peak_column=20.5
)
REJECTED = Region(status=RegionStatus.NOT_FINITE)


def some_regions(start: int = 0) -> pd.DataFrame:
    image_ids = [f"image-{start}", f"image-{start}", f"image-{start + 1}"]
    findings = ["Mass", "Effusion", "Mass"]
    return regions_table(image_ids, findings, [0.5, -1.0, 2.0], [FOUND, REJECTED, FOUND])


def some_maps(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(3, 4, 5)).astype(np.float32)


def some_features(seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(3, len(FEATURE_NAMES)))
    values[1] = np.nan
    return features_table([f"image-{seed}", "b", "c"], ["ok", "no_region", "ok"], values)


def shard(index: int, count: int, **changes: object) -> dict[str, object]:
    return {**PROVENANCE, "shard_index": index, "shard_count": count, **changes}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_regions(tmp_path / "regions", some_regions(), some_maps(), PROVENANCE)
    return tmp_path / "regions"


def test_regions_come_back_as_written(written: Path) -> None:
    artifact = read_regions(written)
    pd.testing.assert_frame_equal(artifact.table, some_regions())
    assert tuple(artifact.table.columns) == REGION_COLUMNS
    assert artifact.table[["top", "left", "bottom", "right"]].to_numpy()[0].tolist() == [
        1,
        2,
        30,
        40,
    ]
    assert np.isnan(artifact.table[["top", "peak_row"]].to_numpy()[1]).all()
    assert artifact.maps.dtype == np.float16
    np.testing.assert_array_equal(artifact.maps, some_maps().astype(np.float16))
    assert PROVENANCE.items() <= artifact.provenance.items()


def test_artifact_holds_the_documented_files_and_nothing_else(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == ["maps.npy", "regions.parquet"]


def test_empty_regions_come_back_empty(tmp_path: Path) -> None:
    empty = regions_table([], [], [], [])
    write_regions(tmp_path / "r", empty, np.zeros((0, 4, 5), np.float32), PROVENANCE)
    artifact = read_regions(tmp_path / "r")
    assert len(artifact.table) == 0
    assert artifact.maps.shape == (0, 4, 5)


def test_map_that_is_not_finite_is_stored_as_it_is(tmp_path: Path) -> None:
    maps = some_maps()
    maps[1, 0, 0] = np.nan
    write_regions(tmp_path / "r", some_regions(), maps, PROVENANCE)
    assert np.isnan(read_regions(tmp_path / "r").maps[1, 0, 0])


def test_map_beyond_float16_is_refused_not_made_infinite(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="65504"):
        write_regions(tmp_path / "r", some_regions(), some_maps() * 1e6, PROVENANCE)
    assert not (tmp_path / "r").exists()


def test_maps_of_another_length_are_refused_when_writing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="2 entries, the table has 3 rows"):
        write_regions(tmp_path / "r", some_regions(), some_maps()[:2], PROVENANCE)


def test_maps_of_another_length_are_refused_when_reading(written: Path) -> None:
    frame = some_regions().iloc[:2]
    _, provenance = read_regions(written).table, read_regions(written).provenance
    write_table(written / "regions.parquet", frame, "regions", 1, provenance)
    with pytest.raises(ArtifactError, match="3 entries, the table has 2 rows"):
        read_regions(written)


def test_missing_maps_are_refused(written: Path) -> None:
    (written / "maps.npy").unlink()
    with pytest.raises(ArtifactError, match=r"maps\.npy is missing"):
        read_regions(written)


def test_truncated_maps_are_refused(written: Path) -> None:
    whole = (written / "maps.npy").read_bytes()
    (written / "maps.npy").write_bytes(whole[:-7])
    with pytest.raises(ArtifactError, match="truncated or changed"):
        read_regions(written)


def test_maps_of_another_run_are_refused(written: Path) -> None:
    np.save(written / "maps.npy", some_maps(1).astype(np.float16))
    with pytest.raises(ArtifactError, match="truncated or changed"):
        read_regions(written)


def test_truncated_table_is_refused(written: Path) -> None:
    whole = (written / "regions.parquet").read_bytes()
    (written / "regions.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="not a whole Parquet file"):
        read_regions(written)


def test_unknown_schema_version_is_refused_naming_both(written: Path) -> None:
    provenance = read_regions(written).provenance
    write_table(written / "regions.parquet", some_regions(), "regions", 2, provenance)
    with pytest.raises(ArtifactError, match=r"of schema 2, but this release reads .* schema 1"):
        read_regions(written)


def test_table_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="score"):
        write_regions(tmp_path / "r", some_regions().drop(columns="score"), some_maps(), PROVENANCE)


def test_features_come_back_as_written(tmp_path: Path) -> None:
    write_features(tmp_path / "f", [some_features()], PROVENANCE)
    artifact = read_features(tmp_path / "f")
    pd.testing.assert_frame_equal(artifact.table, some_features())
    assert artifact.provenance == PROVENANCE


def test_features_of_another_kind_or_version_are_refused(tmp_path: Path) -> None:
    write_features(tmp_path / "f", [some_features()], PROVENANCE)
    target = tmp_path / "f" / "features.parquet"
    write_table(target, some_features(), "regions", 1, PROVENANCE)
    with pytest.raises(ArtifactError, match="'regions' of schema 1"):
        read_features(tmp_path / "f")
    write_table(target, some_features(), "features", 9, PROVENANCE)
    with pytest.raises(ArtifactError, match="schema 9"):
        read_features(tmp_path / "f")


def test_features_with_an_unknown_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="glcm_Wrong"):
        write_features(tmp_path / "f", [some_features().assign(glcm_Wrong=0.0)], PROVENANCE)


def test_shards_of_features_follow_their_index_whatever_order_they_are_given_in(
    tmp_path: Path,
) -> None:
    tables = [some_features(0), some_features(1).iloc[:0], some_features(2)]
    for index, table in enumerate(tables):
        write_features(tmp_path / f"{index}", [table], shard(index, 3))
    joined = read_feature_shards([tmp_path / f"{index}" for index in (2, 0, 1)])
    expected = pd.concat([some_features(0), some_features(2)], ignore_index=True)
    pd.testing.assert_frame_equal(joined.table, expected)
    assert joined.provenance == shard(0, 1)


@pytest.mark.parametrize("indices", [[0], [0, 0], [0, 1, 1], []])
def test_missing_and_double_shards_are_refused(tmp_path: Path, indices: list[int]) -> None:
    paths = []
    for number, index in enumerate(indices):
        paths.append(tmp_path / f"{number}")
        write_features(paths[-1], [some_features()], shard(index, 2))
    with pytest.raises(ArtifactError, match="shard"):
        read_feature_shards(paths)


def test_shards_of_another_model_are_refused_naming_what_differs(tmp_path: Path) -> None:
    write_features(tmp_path / "0", [some_features()], shard(0, 2))
    write_features(tmp_path / "1", [some_features()], shard(1, 2, bundle="c" * 64))
    with pytest.raises(MismatchError, match="bundle"):
        read_feature_shards([tmp_path / "0", tmp_path / "1"])


def test_provenance_is_in_the_table_itself(written: Path) -> None:
    metadata = pq.read_table(written / "regions.parquet").schema.metadata
    head = json.loads(metadata[b"chexradinet"])
    assert head["kind"] == "regions"
    assert head["provenance"]["region"] == {"threshold": 0.6}
