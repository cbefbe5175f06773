"""Parts of the work that pods share, and what a closed round leaves in place of it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chexradinet.artifacts import write_document, writing_directory
from chexradinet.config import RadiomicsConfig, RegionConfig, require
from chexradinet.replacing import Head


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
        """Return this shard's rows; empty where there are fewer rows than shards."""
        return np.array_split(rows, self.count)[self.index]

    def provenance(
        self, dataset_digest: str, bundle_digest: str, config: RegionConfig | RadiomicsConfig
    ) -> dict[str, Any]:
        """Return what the tables of a stage say of where they come from."""
        return {
            "dataset_digest": dataset_digest,
            "bundle_digest": bundle_digest,
            "config": asdict(config),
            "shard_index": self.index,
            "shard_count": self.count,
        }


def skip(target: Path) -> None:
    """Write what a stage leaves in a closed round: a directory that says that it was skipped."""
    with writing_directory(target, Head("skipped.json", "skipped")) as folder:
        write_document(folder / "skipped.json", "skipped", 1, {})
