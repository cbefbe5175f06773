"""Local radiomics of whole images: images per second of one core, and of the controls' targets.

Run with `python -m benchmarks.pretext`. Processor time of this process, the best of several
batches, so that other load on the machine matters little.
"""

import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks.radiomics import radiograph_like
from chexradinet.regions.local_radiomics import local_hog, local_radiomics

CASES = ((96, 8), (128, 8), (224, 16))
"""Side of the image and stride of the grid, in pixels."""
BATCHES, IMAGES = 10, 20


def images_per_s(
    measure: Callable[[NDArray[np.uint8], int], object], image: NDArray[np.uint8], stride: int
) -> float:
    """Return the pace of the fastest batch."""
    measure(image, stride)
    times = []
    for _ in range(BATCHES):
        start = time.process_time()
        for _ in range(IMAGES):
            measure(image, stride)
        times.append(time.process_time() - start)
    return IMAGES / min(times)


def main() -> None:
    """Print a table."""
    print("| side | stride | radiomics, images/s | HOG, images/s |\n|---|---|---|---|")
    for side, stride in CASES:
        image = radiograph_like(side)
        paces = [images_per_s(measure, image, stride) for measure in (local_radiomics, local_hog)]
        print(f"| {side} | {stride} | {paces[0]:.0f} | {paces[1]:.0f} |")


if __name__ == "__main__":
    main()
