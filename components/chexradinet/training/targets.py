"""Targets of a pretext: made once per data set, in shards as the data set's, and mapped.

targets.json        measure, stride, data set, SHA-256 of each shard
targets-NNNNN.npy   float32 (n, D, h, w), one cell per cell of the heatmap's grid
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexradinet.artifacts import Head, read_document, sha256_of, write_document, writing_directory
from chexradinet.config import Pretext, digest_of
from chexradinet.dataset.dataset import Dataset, gathered
from chexradinet.errors import ArtifactError, WorkerError
from chexradinet.parallel import Failure, Job, in_processes
from chexradinet.regions.local_radiomics import LOCAL_FEATURES, local_radiomics

KIND = "pretext-targets"
SCHEMA = 1
_HEAD = Head("targets.json", KIND)
_CHUNK_IMAGES = 32
_NUM_ORIENTATIONS = 9
_EPS = 1e-6

Measure = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]


def local_hog(image: NDArray[np.uint8], stride: int) -> NDArray[np.float32]:
    """Return the share of each orientation in each cell, shape (9, H / stride, W / stride).

    Histograms of oriented gradients: the pretext that radiomics have to beat.

    Args:
        image: Grey levels, shape (H, W); sides are multiples of `stride`.
        stride: Pixels of a cell's side.

    Source: Dalal and Triggs 2005; as a pretext, Wei et al. 2022, arXiv:2112.09133.
    """
    height, width = image.shape[0] // stride, image.shape[1] // stride
    down, right = np.gradient(image.astype(np.float32))
    angle = np.arctan2(down, right) % np.pi
    orientation = np.minimum(
        (angle / np.pi * _NUM_ORIENTATIONS).astype(np.intp), _NUM_ORIENTATIONS - 1
    )
    cell = np.arange(height).repeat(stride)[:, None] * width + np.arange(width).repeat(stride)
    place = orientation * (height * width) + cell
    found = np.bincount(
        place.ravel(), np.hypot(down, right).ravel(), _NUM_ORIENTATIONS * height * width
    ).reshape(_NUM_ORIENTATIONS, height, width)
    scaled: NDArray[np.float32] = (found / (np.linalg.norm(found, axis=0) + _EPS)).astype(
        np.float32
    )
    return scaled


_MEASURES: dict[Pretext, tuple[str, Measure, int]] = {
    Pretext.RADIOMICS: ("radiomics-1", local_radiomics, len(LOCAL_FEATURES)),
    Pretext.PERMUTED: ("radiomics-1", local_radiomics, len(LOCAL_FEATURES)),
    Pretext.HOG: ("hog-1", local_hog, _NUM_ORIENTATIONS),
}
"""Name and version of each measure, its function, and how many targets it gives."""


@dataclass(frozen=True)
class Targets:
    """Targets of all images of a data set, mapped."""

    shards: tuple[NDArray[np.float32], ...]
    digest: str

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the targets of some rows, (n, D, h, w)."""
        parts = [(shard.__getitem__, len(shard)) for shard in self.shards]
        return gathered(parts, rows, self.shards[0][:0])


def prepare_targets(
    data: Dataset,
    pretext: Pretext,
    stride: int,
    cache: Path,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Targets:
    """Return the targets of a data set; they are made unless the cache has them.

    Args:
        data: Data set whose images are measured, all of them.
        pretext: `radiomics`, `permuted` or `hog`.
        stride: Pixels of a cell's side.
        cache: Folder that holds a directory per data set, measure and stride.
        num_workers: Processes, at least 1.
        progress: Called with the number of images done and of all.

    Raises:
        ArtifactError: the cache was changed; it names the file.
        WorkerError: no process can be started, or one died twice of the same images.
    """
    name, measure, depth = _MEASURES[pretext]
    asked = {"measure": name, "stride": stride, "dataset_digest": data.digest}
    digest = digest_of(asked)
    folder = cache / f"{name}-{digest[:16]}"
    if not _HEAD.is_in(folder):
        work = partial(_measured, measure, stride)
        side = data.info.preprocessing.image_side // stride
        with writing_directory(folder, _HEAD) as made:
            files = _write(made, data, work, (depth, side, side), num_workers, progress)
            write_document(made / _HEAD.name, KIND, SCHEMA, {**asked, "files": files})
    return Targets(tuple(_mapped(folder)), digest)


def num_targets(pretext: Pretext, stride: int) -> int:
    """Return how many values a pretext predicts per cell."""
    return _MEASURES[pretext][2] if pretext in _MEASURES else stride * stride


def _write(
    folder: Path,
    data: Dataset,
    work: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    shape: tuple[int, int, int],
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    job = Job(work=work, failed=_give_up)
    chunks = _chunks(data)
    results = map(work, chunks) if num_workers == 1 else in_processes(chunks, job, num_workers)
    files, done = {}, 0
    for number, size in enumerate(data.info.shard_sizes):
        path = folder / f"targets-{number:05d}.npy"
        shard = np.lib.format.open_memmap(path, "w+", np.float32, (size, *shape))
        filled = 0
        while filled < size:
            part = next(results)
            shard[filled : filled + len(part)] = part
            filled, done = filled + len(part), done + len(part)
            if progress:
                progress(done, len(data))
        shard.flush()
        files[path.name] = sha256_of(path)
    return files


def _chunks(data: Dataset) -> Iterator[NDArray[np.uint8]]:
    """Yield the images in order; none of a chunk lies in another shard than the rest."""
    start = 0
    for size in data.info.shard_sizes:
        for first in range(start, start + size, _CHUNK_IMAGES):
            yield data.images(np.arange(first, min(first + _CHUNK_IMAGES, start + size)))
        start += size


def _measured(measure: Measure, stride: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.stack([measure(image, stride) for image in images])


def _give_up(failure: Failure) -> Any:  # noqa: ANN401 - never returns
    raise WorkerError(f"the targets of some images could not be made: {failure.value}; try again")


def _mapped(folder: Path) -> Iterator[NDArray[np.float32]]:
    document = read_document(folder / _HEAD.name, KIND, SCHEMA)
    for name, written in document["files"].items():
        if sha256_of(folder / name) != written:
            raise ArtifactError(
                f"{folder / name} was changed; remove {folder}, and it will be made again"
            )
        yield np.load(folder / name, mmap_mode="r", allow_pickle=False)
