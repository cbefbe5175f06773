"""Time per image and peak memory of the training pipeline's stages as the data set grows.

`python -m benchmarks.growth` makes phantom data sets of 1,000, 4,000 and 16,000 X-rays and runs
one epoch of training, heatmaps, radiomics, a guided round of one epoch, and the evaluation on each,
every stage in a process of its own, `--repeats` times. All sizes have heatmaps by the model of the
smallest, so that regions are alike and only their number grows. It prints the fewest processor
seconds, as whatever else runs only adds to them, and the largest peak of the process's memory; then
what each further image costs from one size to the next, which leaves out what starting costs, and
what a guided round adds to its training. A stage whose cost per image or memory grows does not
scale.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from chexradinet.config import (
    Backbone,
    EvaluationConfig,
    GuidanceConfig,
    GuidanceRecipe,
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    RadiomicsConfig,
    RegionConfig,
    RetrainConfig,
    TrainConfig,
)

TRAINING = TrainConfig(epochs=1, batch_size=32, num_threads=1)
NETWORKS = {
    Backbone.RESNET18_NARROW: NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8),
    Backbone.RESNET50: NetworkConfig(backbone=Backbone.RESNET50),
}
"""A network that shows growth quickly, and the default one."""


def make_dataset(folder: Path, number: int, side: int) -> None:
    """Write phantom X-rays and ingest them."""
    from chexradinet.ingest.ingest import ingest
    from chexradinet.phantom import write_phantom

    write_phantom(folder / "source", number, side, seed=0)
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=side), ingest_workers=1)
    ingest(str(folder / "source"), folder / "dataset", config)


def _model(folder: Path) -> Path:
    """Return the model of the smallest data set."""
    return min(folder.parent.iterdir(), key=lambda one: int(one.name)) / "round-0"


def _train(folder: Path, backbone: Backbone) -> None:
    from chexradinet.training.train import train

    train(folder / "dataset", folder / "round-0", NETWORKS[backbone], TRAINING)


def _heatmap(folder: Path, _: Backbone) -> None:
    from chexradinet.training.rounds import heatmap

    heatmap(_model(folder), folder / "dataset", folder / "regions", RegionConfig())


def _radiomics(folder: Path, _: Backbone) -> None:
    from chexradinet.training.rounds import radiomics

    config = RadiomicsConfig()
    dataset, regions = folder / "dataset", folder / "regions"
    radiomics(dataset, regions, folder / "features", config, num_workers=1)


def _retrain(folder: Path, _: Backbone) -> None:
    from chexradinet.training.train import retrain

    retrain(
        folder / "round-0",
        folder / "dataset",
        [folder / "features"],
        folder / "round-1",
        round_number=1,
        guidance=GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE),
        config=TRAINING,
    )


def _evaluate(folder: Path, _: Backbone) -> None:
    from chexradinet.training.evaluate import Arms, evaluate

    evaluate(
        folder / "dataset",
        Arms(rounds=[folder / "round-0", folder / "round-1"]),
        best=folder / "best",
        target=folder / "evaluation",
        config=EvaluationConfig(bootstrap_samples=100),
        regions=RegionConfig(),
        radiomics=RadiomicsConfig(),
    )


STAGES: dict[str, Callable[[Path, Backbone], None]] = {
    "train": _train,
    "heatmap": _heatmap,
    "radiomics": _radiomics,
    "retrain": _retrain,
    "evaluate": _evaluate,
}


def measured(stage: str, folder: Path, backbone: Backbone) -> tuple[float, float]:
    """Run a stage in a process; return its processor seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.growth", "--stage", stage, "--folder", str(folder)]
    command += ["--backbone", backbone.value]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed with status {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print, or run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="IMAGES", default=[1000, 4000, 16000]
    )
    parser.add_argument("--stage", choices=tuple(STAGES))
    parser.add_argument("--folder", type=Path, help="keeps what is made and measured; runs add up")
    parser.add_argument(
        "--backbone", type=Backbone, choices=tuple(NETWORKS), default=Backbone.RESNET18_NARROW
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each stage")
    parser.add_argument("--side", type=int, default=64, help="height and width in pixels")
    chosen = parser.parse_args()
    if chosen.stage:
        STAGES[chosen.stage](chosen.folder, chosen.backbone)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        found = measure(folder, chosen.sizes, chosen.side, chosen.backbone, chosen.repeats)
    if len(chosen.sizes) > 1:
        report(found, chosen.sizes)


def measure(
    folder: Path, sizes: list[int], side: int, backbone: Backbone, repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Return processor seconds and MiB of every stage, by size; what was measured is read back."""
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    for size in sizes:
        of_size = folder / str(size)
        if not (of_size / "dataset").exists():
            make_dataset(of_size, size, side)
        for stage in STAGES:
            kept = of_size / f"{stage}.json"
            if not kept.exists():
                runs = [measured(stage, of_size, backbone) for _ in range(repeats)]
                kept.write_text(json.dumps(runs))
            runs = json.loads(kept.read_text())
            seconds, peak = min(run[0] for run in runs), max(run[1] for run in runs)
            print(f"{size:6d} {stage:10s}{seconds:9.1f} CPU s{peak:8.0f} MiB", flush=True)
            found[stage].append((seconds, peak))
    return found


def report(found: dict[str, list[tuple[float, float]]], sizes: list[int]) -> None:
    """Print what further images cost in every stage, and what a guided round adds."""
    steps = list(itertools.pairwise(range(len(sizes))))
    added: dict[str, float] = {}
    for stage, taken in found.items():
        costs = [
            1e3 * (taken[more][0] - taken[less][0]) / (sizes[more] - sizes[less])
            for less, more in steps
        ]
        added[stage] = costs[-1]
        memory = taken[-1][1] / taken[0][1]
        shown = ", ".join(f"{cost:.2f}" for cost in costs)
        print(f"{stage:10s}{shown} CPU ms per further image, x{costs[-1] / costs[0]:.2f}; "
              f"memory x{memory:.2f} (targets: at most 1.10)")  # fmt: skip
    # One epoch was measured; a round has more.
    epochs = RetrainConfig().round_epochs
    loss = epochs * (added["retrain"] - added["train"])
    share = (added["heatmap"] + added["radiomics"] + loss) / (epochs * added["train"])
    print(f"a guided round of {epochs} epochs adds {share:.0%} to its training (target: 25%)")


if __name__ == "__main__":
    main()
