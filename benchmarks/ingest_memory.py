"""Memory of ingest with 1,000 and 4,000 DICOM files, and the clock with one and two workers.

`python -m benchmarks.ingest_memory` writes distinct radiographs, ingests them through the command's
own code in a process of its own, and prints the most memory that the process and its workers held,
and the wall time. Two workers gain by the clock only where the machine has two idle cores: the load
before the run is printed beside the ratio.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from pydicom import uid

from chexradinet.config import IngestConfig, PreprocessingConfig, QualityConfig, SourceFormat
from chexradinet.dataset.deidentification import KEY_VARIABLE
from chexradinet.ingest.ingest import ingest
from chexradinet.phantom import encode_radiograph

MEMORY_FILES = (1000, 4000)
MEMORY_RATIO = 1.10
CLOCK_RATIO = 1.7
CLOCK_RUNS = 3
DISTINCT_FILES = 40


def write_files(folder: Path, count: int, side: int) -> None:
    """Write radiographs that differ in their noise and in nothing else."""
    folder.mkdir()
    row, column = np.mgrid[0:side, 0:side]
    scene = 2048 + 1500 * np.sin(column * 6.8 / side) * np.cos(row * 8.2 / side)
    random = np.random.default_rng(0)
    for number in range(count):
        # Rolling the same noise makes it distinct without drawing it again for each file.
        noise = random.integers(-30, 30, side)
        stored = (scene + noise).clip(0, 4095).astype(np.uint16)
        attributes = {"PatientID": str(number), "WindowCenter": 2000, "WindowWidth": 2600}
        content = encode_radiograph(stored, uid.ExplicitVRLittleEndian, attributes)
        (folder / f"{number:05d}").write_bytes(content)


def run_one(source: str, target: str, num_workers: int) -> None:
    """Ingest, and print what it took."""
    import resource

    config = IngestConfig(
        data_format=SourceFormat.DICOM,
        preprocessing=PreprocessingConfig(image_side=224),
        quality=QualityConfig(check_inversion=False),
        ingest_workers=num_workers,
        ingest_shard_size=512,
        max_reject_fraction=1,
    )
    start = time.perf_counter()
    info = ingest(source, Path(target), config)
    told = {
        "images": info.counts["images"],
        "wall_s": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    print(json.dumps(told))


def measured(source: Path, num_workers: int) -> dict[str, float]:
    """Ingest in a process of its own and return what it told."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ingest_memory", "--one"]
        command += [str(source), f"{folder}/dataset", str(num_workers)]
        environment = {**os.environ, KEY_VARIABLE: "benchmark" * 4}
        ended = subprocess.run(command, env=environment, capture_output=True, check=True)
    told: dict[str, float] = json.loads(ended.stdout)
    return told


def report_memory(folder: Path, side: int) -> bool:
    """Print the peaks; return whether four times the files take at most a tenth more."""
    passed = True
    for num_workers in (1, 2):
        peaks = []
        for count in MEMORY_FILES:
            source = folder / f"memory-{count}"
            if not source.exists():
                write_files(source, count, side)
            told = measured(source, num_workers)
            assert told["images"] == count
            own, worker = told["peak_mib"], told["worker_peak_mib"]
            peaks.append((own, worker))
            print(
                f"{num_workers} workers, {count:5} files of {side}x{side}: peak {own:.0f} MiB, "
                f"largest worker {worker:.0f} MiB, {told['wall_s']:.1f} s"
            )
        ratios = [many / few for few, many in zip(*peaks, strict=True) if few]
        print(f"  ratio {max(ratios):.3f} (allowed {MEMORY_RATIO})")
        passed &= max(ratios) <= MEMORY_RATIO
    return passed


def report_clock(folder: Path, count: int) -> bool:
    """Print what a second worker gains by the clock on 2048x2048 files."""
    source = folder / "clock"
    write_files(source, DISTINCT_FILES, 2048)
    for number in range(DISTINCT_FILES, count):
        # Decoded like any other, then rejected as a copy: disk and page cache stay small.
        (source / f"{number:05d}").symlink_to(source / f"{number % DISTINCT_FILES:05d}")
    load = os.getloadavg()[0]
    measured(source, 1)  # files come from the page cache in all that follow
    pairs = [[measured(source, workers)["wall_s"] for workers in (1, 2)] for _ in range(CLOCK_RUNS)]
    one, two = (min(walls) for walls in zip(*pairs, strict=True))
    print(
        f"{count} files of 2048x2048: one worker {one:.1f} s, two {two:.1f} s, x{one / two:.2f} by "
        f"the clock, starting them included (needed {CLOCK_RATIO}); the least disturbed of "
        f"{CLOCK_RUNS} runs each, all: {[[round(wall, 1) for wall in pair] for pair in pairs]}; "
        f"load before {load:.1f}"
    )
    return bool(one / two >= CLOCK_RATIO)


def main() -> int:
    """Print all; return 1 where a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("SOURCE", "TARGET", "WORKERS"))
    parser.add_argument("--side", type=int, default=256, help="of the files for memory")
    parser.add_argument("--clock-files", type=int, default=1600, help="0 leaves the clock out")
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], options.one[1], int(options.one[2]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        passed = report_memory(Path(folder), options.side)
        if options.clock_files:
            passed &= report_clock(Path(folder), options.clock_files)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
