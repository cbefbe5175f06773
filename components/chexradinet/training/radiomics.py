"""What the regions look like: 102 radiomics features of each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from chexradinet.config import RadiomicsConfig
from chexradinet.dataset.dataset import open_dataset
from chexradinet.errors import MismatchError
from chexradinet.processors import available_processors
from chexradinet.regions.format import FEATURES_HEAD, read_regions, write_features
from chexradinet.regions.radiomics import extract_features
from chexradinet.replacing import require_replaceable
from chexradinet.training.sharding import Shard
from chexradinet.watching import watched


@watched("radiomics")
def radiomics(
    dataset: Path,
    regions: Path,
    target: Path,
    config: RadiomicsConfig,
    shard: Shard | None = None,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the features of a shard of the regions; return how many rows they have.

    Args:
        dataset: Directory that `ingest` wrote.
        regions: Directory that `heatmap` wrote from it.
        target: Features directory to make.
        config: Settings of the features.
        shard: Which part of the regions; None for all.
        num_workers: Processes; 0 uses every core the process may use.
        progress: Called with the number of regions done and of all.

    Raises:
        ConfigError: `target` holds something else than features, or cannot be made.
        ArtifactError: an input cannot be read.
        MismatchError: the regions were found in another data set.
    """
    require_replaceable(target, FEATURES_HEAD)
    data = open_dataset(dataset)
    found = read_regions(regions)
    if found.provenance["dataset_digest"] != data.digest:
        raise MismatchError(
            f"the regions come from data set {found.provenance['dataset_digest'][:12]}, but "
            f"{data.digest[:12]} was given; pass the data set that the heatmaps were made of"
        )
    shard = shard or Shard(0, 1)
    part = found.table.iloc[shard.part_of(np.arange(len(found.table)))].reset_index(drop=True)
    rows = data.row_of(part["image_id"].to_numpy())
    workers = num_workers or available_processors()
    table = extract_features(data.images, part, rows, config, workers, progress)
    provenance = shard.provenance(data.digest, found.provenance["bundle_digest"], config)
    write_features(target, table, provenance)
    return len(table)
