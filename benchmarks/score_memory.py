"""Memory of the nightly run with 500 and with 5,000 X-rays, each in a process of its own.

`python -m benchmarks.score_memory` writes small phantoms as PNG files and prints the most memory
that a night held, with a narrow network and one flag an X-ray. What the X-rays themselves take is
the same in both nights, so anything that grows with their number shows.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

from benchmarks.score import night, publish
from chexradinet.config import Backbone, NetworkConfig
from chexradinet.findings import NIH_FINDINGS
from chexradinet.model.resnet import build_network
from chexradinet.phantom import draw_phantom

COUNTS = (500, 5000)
SIDE = 64
ALLOWED = 1.10


def write_inbox(folder: Path, count: int) -> None:
    """Write phantoms that all differ: thirty drawn ones, each marked with its own number."""
    folder.mkdir()
    drawn = [draw_phantom(number, SIDE, 0, 0.0).pixels for number in range(30)]
    for number in range(count):
        pixels = drawn[number % len(drawn)].copy()
        pixels[0, :16] = [(number >> bit & 1) * 64 for bit in range(16)]
        cv2.imwrite(str(folder / f"{number:05d}.png"), pixels)


def measured(folder: Path, count: int) -> float:
    """Return the peak of a night in a process of its own, in MiB."""
    command = [sys.executable, "-m", "benchmarks.score_memory", "--one", str(folder), str(count)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(ended.stdout)


def main() -> int:
    """Print all; return 1 where the ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "COUNT"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        folder, count = Path(options.one[0]), int(options.one[1])
        night(folder, folder / f"inbox-{count}", f"results-{count}", count)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = NetworkConfig(backbone=Backbone.RESNET18_NARROW)
        network = build_network(config, len(NIH_FINDINGS), seed=0)
        network.eval()
        images = np.stack([draw_phantom(number, SIDE, 1, 0.0).pixels for number in range(128)])
        publish(folder / "models", network, images)
        peaks = []
        for count in COUNTS:
            write_inbox(folder / f"inbox-{count}", count)
            peaks.append(measured(folder, count))
            print(f"{count} X-rays: peak {peaks[-1]:.0f} MiB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f} (allowed {ALLOWED})")
    return int(peaks[1] / peaks[0] > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
