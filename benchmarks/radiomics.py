"""Radiomics of one box: pyradiomics' `execute()` against ours, and that the values are the same.

Run with `python -m benchmarks.radiomics`. Processor time of this process, so that other load on the
machine matters little; the ratio carries to another machine, the milliseconds do not.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from radiomics.featureextractor import RadiomicsFeatureExtractor

from chexradinet.config import RadiomicsConfig
from chexradinet.records import Box
from chexradinet.regions import FEATURE_CLASSES, FEATURE_NAMES
from chexradinet.regions.radiomics import crop_of, features_of_crop

CASES = ((40, 224), (112, 224), (112, 512), (256, 512))
"""Side of the box and of the image, in pixels."""

REPEATS = 15
CONFIG = RadiomicsConfig()


def radiograph_like(side: int) -> NDArray[np.uint8]:
    """Return smooth structure with grain, over the whole 8-bit range, shape (side, side)."""
    grain = np.random.default_rng(0).normal(size=(side, side))
    smooth = np.asarray(cv2.GaussianBlur(grain, (0, 0), side / 40))
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 220 + grain * 6
    return np.asarray(np.clip(scaled, 0, 255), dtype=np.uint8)


def extractor() -> RadiomicsFeatureExtractor:
    """Return pyradiomics' own extractor with the settings of `features_of_crop`."""
    made = RadiomicsFeatureExtractor(
        binWidth=CONFIG.bin_width, force2D=True, force2Ddimension=0, label=1, additionalInfo=False
    )
    made.disableAllFeatures()
    for feature_class in FEATURE_CLASSES:
        made.enableFeatureClassByName(feature_class)
    return made


def executed(
    reference: RadiomicsFeatureExtractor, image: NDArray[np.uint8], box: Box
) -> NDArray[np.float64]:
    """Return the 102 values of `execute()`, with what a caller must do for it."""
    mask = np.zeros(image.shape, np.uint8)
    mask[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = 1
    image_node = sitk.GetImageFromArray(image.astype(np.float64)[None])
    found = reference.execute(image_node, sitk.GetImageFromArray(mask[None]))
    return np.array([float(found[f"original_{name}"]) for name in FEATURE_NAMES])


def medians_ms(measures: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median processor time of each, in milliseconds, taken in turns."""
    times: list[list[float]] = [[] for _ in measures]
    for _ in range(REPEATS):
        for measure, taken in zip(measures, times, strict=True):
            start = time.process_time()
            measure()
            taken.append(time.process_time() - start)
    return [float(np.median(taken)) * 1e3 for taken in times]


def compare(reference: RadiomicsFeatureExtractor, box_side: int, side: int) -> None:
    """Print one line: both times, their ratio, the largest difference of a value."""
    image = radiograph_like(side)
    corner = (side - box_side) // 2
    box = Box(corner, corner, corner + box_side, corner + box_side)
    expected = executed(reference, image, box)
    values = features_of_crop(crop_of(image, box), CONFIG).values
    # Where the reference is 0, ours must be 0 too, and then they do not differ.
    scale = np.where(expected == 0, 1.0, np.abs(expected))
    difference = float(np.max(np.abs(values - expected) / scale))
    theirs, ours = medians_ms(
        [
            lambda: executed(reference, image, box),
            lambda: features_of_crop(crop_of(image, box), CONFIG),
        ]
    )
    print(
        f"{box_side:3d}px  {side:3d}px  {theirs:6.1f} ms  {ours:5.1f} ms  x{theirs / ours:.1f}"
        f"   {difference:.1e}"
    )


def main() -> None:
    """Print one line a case."""
    logging.getLogger("radiomics").setLevel(logging.CRITICAL + 1)
    reference = extractor()
    print("box    image  execute()    here      ratio  largest relative difference")
    for box_side, side in CASES:
        compare(reference, box_side, side)


if __name__ == "__main__":
    main()
