"""Where the classifier looked: one map and one region for every finding that will guide it."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import require_replaceable
from chexradinet.config import RegionConfig
from chexradinet.dataset.dataset import Dataset, open_dataset
from chexradinet.model.bundle import load_bundle, require_match
from chexradinet.model.inference import predict
from chexradinet.model.resnet import ChexRadiNet
from chexradinet.monitoring import timed_stage
from chexradinet.records import Split
from chexradinet.regions.extract import extract_regions, guiding_findings
from chexradinet.regions.tables import REGIONS_HEAD, regions_table, write_regions
from chexradinet.training.radiomics import Shard


@timed_stage("heatmap")
def heatmap(
    bundle: Path, dataset: Path, target: Path, config: RegionConfig, shard: Shard | None = None
) -> int:
    """Write the regions of a shard of the training split; return how many rows they have.

    Args:
        bundle: Model that looks.
        dataset: Directory that `ingest` wrote; its training split is looked at, boxes are not read.
        target: Regions directory to make.
        config: How a map becomes a region.
        shard: Which part of the training images; None for all.

    Raises:
        ConfigError: `target` holds something else than regions, or cannot be made.
        ArtifactError: the bundle or the data set cannot be read.
        MismatchError: the bundle was made for other findings or another preprocessing.
    """
    require_replaceable(target, REGIONS_HEAD)
    data = open_dataset(dataset)
    loaded = load_bundle(bundle)
    require_match(loaded.info, data.info)
    shard = shard or Shard(0, 1)
    rows = shard.part_of(data.rows(Split.TRAIN))
    table, maps = look(loaded.network, data, rows, config)
    write_regions(target, table, maps, shard.provenance(data.digest, loaded.digest, config))
    return len(table)


def look(
    network: ChexRadiNet, data: Dataset, rows: NDArray[np.int64], config: RegionConfig
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Return the table of the regions that will guide some images, and the map of each region."""
    predictions = predict(network, data.images, rows, maps=True)
    scores = 1 / (1 + np.exp(-np.clip(predictions.logits.astype(np.float64), -50, 50)))
    cases = guiding_findings(data.labels[rows], scores)
    maps = predictions.maps[[row for row, _ in cases], [column for _, column in cases]]
    image_ids = data.manifest["image_id"].to_numpy()[rows]
    table = regions_table(
        [image_ids[row] for row, _ in cases],
        [data.info.findings[column] for _, column in cases],
        [scores[row, column] for row, column in cases],
        extract_regions(maps, data.info.preprocessing.image_side, config),
    )
    return table, maps
