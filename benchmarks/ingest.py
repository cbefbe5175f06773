"""Reading a 2048x2048 DICOM radiograph for the model, against the reader that users start from.

`python -m benchmarks.ingest` writes one 12-bit radiograph in each transfer syntax and prints
processor milliseconds a file, in turns and on one thread, and the ratio. The peer reads as
torchxrayvision does: pydicom decodes with its default plug-ins, modality LUT and window run over
doubles, and scikit-image resizes with anti-aliasing. Where scikit-image is not installed, the SciPy
calls that it makes stand in for it; the result is the same to the last bit. Our pixels must be
identical to the slow reference: window first, pixel by pixel in doubles, then the area average.
What a second worker gains: `benchmarks.ingest_memory`.
"""

import argparse
import functools
import importlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from scipy import ndimage

from chexradinet.config import DicomConfig, PreprocessingConfig
from chexradinet.dataset.images import fit_to_model
from chexradinet.dicom.reader import read_radiograph, to_model
from chexradinet.phantom import encode_radiograph

SIDE = 224
TARGETS = {
    uid.ExplicitVRLittleEndian: 12.0,
    uid.RLELossless: 2.8,
    uid.JPEGLosslessSV1: 3.5,
    uid.JPEGLSLossless: 2.7,
    uid.JPEG2000Lossless: 1.35,
}


def radiograph(rows: int = 2048) -> NDArray[np.uint16]:
    """Return a noisy 12-bit scene of soft shapes, which compresses as a radiograph does."""
    row, column = np.mgrid[0:rows, 0:rows]
    noise = np.random.default_rng(0).normal(0, 8, row.shape)
    values = 2048 + 1500 * np.sin(column / 300) * np.cos(row / 250) + noise
    return np.asarray(values.clip(0, 4095), dtype=np.uint16)


def write_files(folder: Path) -> dict[uid.UID, Path]:
    """Write the radiograph in each transfer syntax."""
    attributes = {
        "PhotometricInterpretation": "MONOCHROME1",
        "WindowCenter": 2000,
        "WindowWidth": 2600,
    }
    stored, paths = radiograph(), {}
    for syntax in TARGETS:
        paths[syntax] = folder / f"{syntax.keyword}.dcm"
        paths[syntax].write_bytes(encode_radiograph(stored, syntax, attributes))
    return paths


def ours(path: Path) -> NDArray[np.uint8]:
    """Read as ingest does."""
    preprocessing = PreprocessingConfig(image_side=SIDE)
    return to_model(read_radiograph(path.read_bytes(), DicomConfig()), preprocessing)[0]


def windowed(path: Path) -> NDArray[np.float64]:
    """Return pixels in [0, 255] after modality LUT, window and inversion, all in doubles."""
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
    levels = apply_voi_lut(values, dataset)
    low, high = 0.0, float((1 << dataset.BitsStored) - 1)
    levels = (levels - low) / (high - low) * 255.0
    return np.asarray(255.0 - levels)


def resized_by_scikit_image(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shrink with anti-aliasing, as `skimage.transform.resize` does."""
    if importlib.util.find_spec("skimage"):
        transform = importlib.import_module("skimage.transform")
        return np.asarray(
            transform.resize(pixels, (SIDE, SIDE), mode="constant", preserve_range=True)
        )
    factors = np.divide(pixels.shape, SIDE)
    sigma = np.maximum(0, (factors - 1) / 2)
    smooth = ndimage.gaussian_filter(pixels, sigma, mode="grid-constant")
    zoom = [1 / factor for factor in factors]
    shrunk = ndimage.zoom(smooth, zoom, order=1, mode="grid-constant", grid_mode=True)
    return np.asarray(np.clip(shrunk, pixels.min(), pixels.max()))


def peer(path: Path) -> NDArray[np.uint8]:
    """Read as a torchxrayvision script does."""
    return resized_by_scikit_image(windowed(path)).astype(np.uint8)


def reference(path: Path) -> NDArray[np.integer]:
    """Read by our definition without any shortcut: look up pixel by pixel, then average areas."""
    levels = np.rint(255.0 - windowed(path)).astype(np.uint8)
    return fit_to_model(255 - levels, PreprocessingConfig(image_side=SIDE))[0]


def milliseconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def compare(path: Path, repeats: int) -> tuple[float, float]:
    """Return the median milliseconds of the peer and of ours, taken in turns."""
    readers: list[Callable[[], object]] = [
        functools.partial(peer, path),
        functools.partial(ours, path),
    ]
    for reader in readers:
        reader()
    times = [[milliseconds(reader) for reader in readers] for _ in range(repeats)]
    columns = zip(*times, strict=True)
    theirs, mine = (statistics.median(column) for column in columns)
    return theirs, mine


def main() -> int:
    """Print the table; return 1 where pixels differ or a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        name = "scikit-image" if importlib.util.find_spec("skimage") else "SciPy in its place"
        print(f"2048x2048, 12 bits, MONOCHROME1 -> {SIDE} px; peer resizes with {name}")
        for syntax, target in TARGETS.items():
            same = np.array_equal(ours(paths[syntax]), reference(paths[syntax]))
            theirs, mine = compare(paths[syntax], options.repeats)
            missed |= not same or theirs / mine < target
            pixels = "identical pixels" if same else "PIXELS DIFFER"
            print(
                f"{syntax.keyword:22} peer {theirs:6.1f} ms, ours {mine:6.1f} ms, "
                f"x{theirs / mine:.2f} (needed {target}), {pixels}"
            )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
