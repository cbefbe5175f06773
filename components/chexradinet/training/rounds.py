"""A guided round up to its training: whether it runs, over which shards, its regions and features.

Each training stage opens or closes the round after it: no step of its own is started for that.
Importing this costs no torch, which would be most of what a closed round takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import Head, require_replaceable, write_document, writing_directory
from chexradinet.config import Precision, RadiomicsConfig, RegionConfig, require
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.errors import ConfigError, MismatchError
from chexradinet.model import require_match
from chexradinet.monitoring import timed_stage
from chexradinet.parallel import available_processors
from chexradinet.records import Split
from chexradinet.regions import (
    FEATURES_HEAD,
    PRECISION,
    REGIONS_HEAD,
    read_regions,
    regions_table,
    write_features,
    write_regions,
)
from chexradinet.regions.extract import extract_regions, guiding_findings
from chexradinet.regions.radiomics import extract_features, is_installed

if TYPE_CHECKING:
    from chexradinet.model.resnet import ChexRadiNet

IMAGES_PER_SHARD = 2500
"""Training images of a shard: minutes of work for one core, so that a pod's start is worth it."""


class Opening(NamedTuple):
    """What the steps of a round are given."""

    active: bool
    """Whether the round runs; the steps of a closed round pass their input on."""
    shards: list[int]
    """Parts of the training images; a closed round has one, as no runner accepts an empty loop."""
    accelerators: str
    """Accelerators of a training step, as the text that Kubeflow reads; "0" for a closed round."""
    single_accelerator: str
    """Accelerators of a step that cannot use several, in the same way."""


def open_round(
    number: int,
    rounds: int,
    improved: bool,
    num_shards: int,
    accelerators: str,
    node_accelerators: str = "",
) -> Opening:
    """Tell a round's steps whether it runs, over which shards, and with how many accelerators.

    Args:
        number: Number of the round to open, from 1.
        rounds: Guided rounds that were asked for.
        improved: Whether the round before ran and improved validation.
        num_shards: Number of shards of a round.
        accelerators: Accelerators of a training step in a round that runs.
        node_accelerators: Accelerators of a node, if a training has several nodes.
    """
    if not improved or number > rounds:
        return Opening(active=False, shards=[0], accelerators="0", single_accelerator="0")
    return Opening(
        active=True,
        shards=list(range(num_shards)),
        accelerators=accelerators,
        single_accelerator=single_accelerator(node_accelerators or accelerators),
    )


def single_accelerator(accelerators: str) -> str:
    """Return what a step that cannot use several accelerators reserves: at most one."""
    return str(min(1, int(accelerators)))


def shards_for(num_images: int, wanted: int, at_most: int) -> int:
    """Return the number of shards: the wanted one, or one per `IMAGES_PER_SHARD` images.

    Args:
        num_images: Number of training images.
        wanted: Number of shards; 0 chooses by the number of images.
        at_most: Largest number to choose.
    """
    return wanted or min(at_most, max(1, -(-num_images // IMAGES_PER_SHARD)))


def skip(target: Path) -> None:
    """Write what a stage leaves in a closed round: a directory that says that it was skipped."""
    with writing_directory(target, Head("skipped.json", "skipped")) as folder:
        write_document(folder / "skipped.json", "skipped", 1, {})


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of nearly equal length, in order."""

    index: int
    count: int

    def __post_init__(self) -> None:
        """Check that the part exists."""
        require(self.count >= 1, "shard count", self.count, "at least 1")
        require(0 <= self.index < self.count, "shard index", self.index, f"in [0, {self.count})")

    def part_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
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
    from chexradinet.model.bundle import load_bundle
    from chexradinet.model.inference import choose_device, resolved

    require_replaceable(target, REGIONS_HEAD)
    data = open_dataset(dataset)
    loaded = load_bundle(bundle)
    require_match(loaded.info, data.info)
    shard = shard or Shard(0, 1)
    rows = shard.part_of(data.rows(Split.TRAIN))
    precision = resolved(Precision.AUTO, choose_device())
    table, maps = look(loaded.network, data, rows, config, precision)
    provenance = shard.provenance(data.digest, loaded.digest, config)
    if precision is not Precision.FLOAT32:
        provenance[PRECISION] = precision.value
    write_regions(target, table, maps, provenance)
    return len(table)


def look(
    network: "ChexRadiNet",
    data: Dataset,
    rows: NDArray[np.int64],
    config: RegionConfig,
    precision: Precision = Precision.FLOAT32,
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """Return the table of the regions that will guide some images, and the map of each region."""
    from chexradinet.model.inference import predict

    predictions = predict(network, data.images, rows, maps=True, precision=precision)
    scores = 1 / (1 + np.exp(-np.clip(predictions.logits.astype(np.float64), -50, 50)))
    cases = guiding_findings(data.labels[rows], scores)
    maps = predictions.maps[[row for row, _ in cases], [column for _, column in cases]]
    image_ids = data.column("image_id")[rows]
    table = regions_table(
        [image_ids[row] for row, _ in cases],
        [data.info.findings[column] for _, column in cases],
        [scores[row, column] for row, column in cases],
        extract_regions(maps, data.info.preprocessing.image_side, config),
    )
    return table, maps


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
    tables = extract_features(data.images, found.table, rows, config, workers, progress)
    shard = Shard(found.provenance.get("shard_index", 0), found.provenance.get("shard_count", 1))
    provenance = shard.provenance(data.digest, found.provenance["bundle_digest"], config)
    write_features(target, tables, provenance)
    return len(rows)
