"""The radiomics stage: 102 features of each region; and the shards that stages are split into."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.artifacts import require_replaceable
from chexradinet.config import RadiomicsConfig, RegionConfig, require
from chexradinet.dataset.dataset import open_dataset
from chexradinet.errors import ConfigError, MismatchError
from chexradinet.monitoring import timed_stage
from chexradinet.processors import available_processors
from chexradinet.regions.radiomics import extract_features, is_installed
from chexradinet.regions.tables import FEATURES_HEAD, read_regions, write_features


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of nearly equal length, in order."""

    index: int
    count: int

    def __post_init__(self) -> None:
        """Check that the part exists."""
        require(self.count >= 1, "shard count", self.count, "at least 1")
        require(0 <= self.index < self.count, "shard index", self.index, f"in [0, {self.count})")

    def part_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return this shard's rows; empty if there are fewer rows than shards."""
        return np.array_split(rows, self.count)[self.index]

    def provenance(
        self, dataset_digest: str, bundle_digest: str, config: RegionConfig | RadiomicsConfig
    ) -> dict[str, Any]:
        """Return what the tables of a stage say of where they come from."""
        return {
            "dataset_digest": dataset_digest,
            "bundle_digest": bundle_digest,
            "config": config.record(),
            "shard_index": self.index,
            "shard_count": self.count,
        }


@timed_stage("radiomics")
def radiomics(
    dataset: Path,
    regions: Path,
    target: Path,
    config: RadiomicsConfig,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the features of regions, or of one shard of them; return how many rows they have.

    Args:
        dataset: Directory that `ingest` wrote.
        regions: Directory that `heatmap` wrote from it.
        target: Features directory to make.
        config: Settings of the features.
        num_workers: Processes; 0 uses every core the process may use.
        progress: Called with the number of regions done and of all.

    Raises:
        ConfigError: pyradiomics is not installed, or `target` holds something else than features.
        ArtifactError: an input cannot be read.
        MismatchError: the regions were found in another data set.
    """
    if not is_installed():
        raise ConfigError(
            "pyradiomics is not installed, and guided rounds need its features; install "
            "chexradinet[radiomics] (docs/api.md), or train without them: rounds=0"
        )
    require_replaceable(target, FEATURES_HEAD)
    data = open_dataset(dataset)
    found = read_regions(regions)
    if found.provenance["dataset_digest"] != data.digest:
        raise MismatchError(
            f"the regions come from data set {found.provenance['dataset_digest'][:12]}, but "
            f"{data.digest[:12]} was given; pass the data set that the heatmaps were made of"
        )
    rows = data.row_of(found.table["image_id"].to_numpy())
    workers = num_workers or available_processors()
    table = extract_features(data.images, found.table, rows, config, workers, progress)
    shard = Shard(found.provenance.get("shard_index", 0), found.provenance.get("shard_count", 1))
    provenance = shard.provenance(data.digest, found.provenance["bundle_digest"], config)
    write_features(target, table, provenance)
    return len(table)
