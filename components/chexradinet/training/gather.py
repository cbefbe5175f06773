"""Shards of regions or of features joined into one artifact."""

from collections.abc import Sequence
from pathlib import Path

from chexradinet.errors import ArtifactError
from chexradinet.regions.format import merge_features, merge_regions


def gather(shards: Sequence[Path], target: Path) -> None:
    """Join shards in the order of their index, whatever order they are given in.

    Args:
        shards: Directories that `heatmap` wrote, or directories that `radiomics` wrote.
        target: Directory to make, of the same kind.

    Raises:
        ArtifactError: there is no shard, one is missing or double, or they are of different origin.
    """
    if not shards:
        raise ArtifactError("no shard was given; pass every directory that the stage wrote")
    if (shards[0] / "regions.parquet").exists():
        merge_regions(shards, target)
    else:
        merge_features(shards, target)
