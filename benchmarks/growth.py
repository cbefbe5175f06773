"""Time per image and peak memory of the training pipeline's stages as the data set grows.

`python -m benchmarks.growth` makes phantom data sets of 1,000, 4,000 and 16,000 X-rays and runs
one epoch of training, heatmaps, radiomics, a guided round of one epoch, and the evaluation on each,
every stage in a process of its own. It prints processor milliseconds per image and the process's
peak memory, with the change from the smallest data set to the largest, and what a guided round adds
to its training. A stage whose time per image or memory grows does not scale.
"""

import argparse
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
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)

SIDE = 64
TRAINING = TrainConfig(epochs=1, batch_size=32, num_threads=1)
NETWORK = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)


def make_dataset(folder: Path, number: int) -> None:
    """Write phantom X-rays and ingest them."""
    from chexradinet.ingest.ingest import ingest
    from chexradinet.phantom import write_phantom

    write_phantom(folder / "source", number, SIDE, seed=0)
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=SIDE), ingest_workers=1)
    ingest(str(folder / "source"), folder / "dataset", config)


def _train(folder: Path) -> None:
    from chexradinet.training.train import train

    train(folder / "dataset", folder / "round-0", NETWORK, TRAINING)


def _heatmap(folder: Path) -> None:
    from chexradinet.training.heatmap import heatmap

    heatmap(folder / "round-0", folder / "dataset", folder / "regions", RegionConfig())


def _radiomics(folder: Path) -> None:
    from chexradinet.training.radiomics import radiomics

    config = RadiomicsConfig()
    dataset, regions = folder / "dataset", folder / "regions"
    radiomics(dataset, regions, folder / "features", config, num_workers=1)


def _retrain(folder: Path) -> None:
    from chexradinet.training.retrain import retrain

    retrain(
        folder / "round-0",
        folder / "dataset",
        [folder / "features"],
        folder / "round-1",
        round_number=1,
        guidance=GuidanceConfig(),
        config=TRAINING,
    )


def _evaluate(folder: Path) -> None:
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


STAGES: dict[str, Callable[[Path], None]] = {
    "train": _train,
    "heatmap": _heatmap,
    "radiomics": _radiomics,
    "retrain": _retrain,
    "evaluate": _evaluate,
}


def measured(stage: str, folder: Path) -> tuple[float, float]:
    """Run a stage in a process; return its processor seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.growth", "--stage", stage, "--folder", str(folder)]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed with status {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print, or run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--stage", choices=(*STAGES, "nothing"))
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    if chosen.stage:
        STAGES.get(chosen.stage, lambda _: __import__("torch"))(chosen.folder)
        return
    found: dict[tuple[str, int], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        start_s, _ = measured("nothing", Path(scratch))
        for size in chosen.sizes:
            folder = Path(scratch) / str(size)
            make_dataset(folder, size)
            for stage in STAGES:
                seconds, peak = measured(stage, folder)
                per_image = 1e3 * max(seconds - start_s, 1e-3) / size
                found[stage, size] = (per_image, peak)
                print(f"{size:6d} {stage:10s}{per_image:9.2f} CPU ms per image{peak:8.0f} MiB",
                      flush=True)  # fmt: skip
    first, last = chosen.sizes[0], chosen.sizes[-1]
    for stage in STAGES:
        pairs = zip(found[stage, first], found[stage, last], strict=True)
        time_ratio, memory_ratio = (after / before for before, after in pairs)
        print(f"{stage:10s} {first} to {last}: time per image x{time_ratio:.2f}, "
              f"memory x{memory_ratio:.2f} (target: at most 1.10)")  # fmt: skip
    round_0, added = found["train", last][0], ("heatmap", "radiomics", "retrain")
    guided = sum(found[stage, last][0] for stage in added)
    print(f"a guided round costs x{guided / round_0:.2f} of an unguided one (target: at most 1.25)")


if __name__ == "__main__":
    main()
