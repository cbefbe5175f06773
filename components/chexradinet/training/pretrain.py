"""The pretrain stage: an encoder from images alone, of training patients and unlabelled ones.

Targets are made once per data set, in shards as the data set's, and mapped:

    targets.json        measure, stride, data set, SHA-256 of each shard
    targets-NNNNN.npy   float32 (n, D, h, w), one cell per cell of the heatmap's grid

What a training starts from is here too: an encoder, or a state dict such as ImageNet's.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import (
    Head,
    read_document,
    require_replaceable,
    sha256_of,
    write_document,
    writing_directory,
)
from chexradinet.config import NetworkConfig, Pretext, PretrainConfig, digest_of
from chexradinet.dataset import Dataset, gathered, open_dataset
from chexradinet.errors import ArtifactError, MismatchError, TrainingError, WorkerError
from chexradinet.model.bundle import provenance, read_provenance
from chexradinet.model.encoder import (
    ENCODER_FILE,
    ENCODER_HEAD,
    PretextData,
    load_encoder,
    pretext_digest,
    pretrain_network,
    read_encoder,
    save_encoder,
)
from chexradinet.model.resnet import ChexRadiNet, build_network, load_imagenet_weights
from chexradinet.monitoring import ProgressReporter, timed_stage
from chexradinet.parallel import Failure, Job, available_processors, in_processes
from chexradinet.records import Split
from chexradinet.regions.local_radiomics import (
    LOCAL_FEATURES,
    NUM_ORIENTATIONS,
    Measure,
    local_hog,
    local_radiomics,
    measured,
)
from chexradinet.regions.radiomics import RadiomicsNormalisation, fit_normalisation
from chexradinet.store import download_directory, open_object, open_store
from chexradinet.training.processes import safeguard

_log = logging.getLogger(__name__)

KIND = "pretext-targets"
SCHEMA = 1
_HEAD = Head("targets.json", KIND)
_CHUNK_IMAGES = 32
SCALING_IMAGES = 2000
"""Most images whose targets the scaling is fitted to, evenly spread."""
_PARTNERS = 5  # stream of random numbers

_MEASURES: dict[Pretext, tuple[str, Measure, int]] = {
    Pretext.RADIOMICS: ("radiomics-1", local_radiomics, len(LOCAL_FEATURES)),
    Pretext.PERMUTED: ("radiomics-1", local_radiomics, len(LOCAL_FEATURES)),
    Pretext.HOG: ("hog-1", local_hog, NUM_ORIENTATIONS),
}
"""Name and version of each measure, its function, and how many targets it gives."""


@dataclass(frozen=True)
class Source:
    """Images of one data set that may be trained on."""

    data: Dataset
    rows: NDArray[np.int64]
    refused: dict[str, int]
    """Images that may not, by what gave them away: `patient` or `content`."""


@timed_stage("pretrain")
def pretrain(
    dataset: Path,
    target: Path,
    network: NetworkConfig,
    config: PretrainConfig,
    *,
    unlabelled: Path | None = None,
    cache: Path | None = None,
    num_workers: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Pre-train an encoder and write it; return what it says of itself.

    No image of a test or validation patient is used: neither of the patient, nor of equal pixels.

    Args:
        dataset: Directory that `ingest` wrote; its training images are used, its labels are not.
        target: Encoder directory to make.
        network: Shape of the classifier that will start from it.
        config: Pretext and schedule.
        unlabelled: Another data set, all images of which are used; ingested by the same settings.
        cache: Folder that keeps the targets for the next run; None keeps nothing.
        num_workers: Processes that make targets; 0 uses every core the process may use.
        progress: Called after each step.

    Raises:
        ConfigError: `target` holds something else than an encoder, or cannot be made.
        ArtifactError: a data set cannot be read.
        MismatchError: the unlabelled images were prepared in another way.
        TrainingError: no image is left to train on, or the loss left the finite numbers.
        Interrupted: the process was asked to end; the message says where its state is.
    """
    require_replaceable(target, ENCODER_HEAD)
    sources = _sources(dataset, unlabelled)
    main = sources[0].data
    made = build_network(network, len(main.info.findings), seed=config.seed)
    history: list[dict[str, Any]] = []
    scaling = None
    if config.pretext is not Pretext.NONE:
        workers = num_workers or available_processors()
        with nullcontext(cache) if cache else tempfile.TemporaryDirectory() as folder:
            stride = network.map_stride
            data, scaling = _pretext_data(sources, config, stride, Path(folder), workers)
            with safeguard(pretext_digest(made, data, config)) as guard:
                history = pretrain_network(
                    made,
                    data,
                    config,
                    progress=ProgressReporter(progress),
                    checkpoint=guard.checkpoint,
                    should_stop=guard.should_stop,
                    should_save=guard.should_save,
                )
                guard.trained()
    origin = provenance("pretrain", [source.data.digest for source in sources], config)
    save_encoder(target, made, _record(sources, config, network, scaling, history), [origin])
    return read_encoder(target)


def held_out(data: Dataset) -> tuple[set[str], set[str]]:
    """Return the patients and the content hashes of the validation and the test split."""
    rows = np.concatenate([data.rows(Split.VALIDATION), data.rows(Split.TEST)])
    chosen = identities(data).iloc[rows]
    return set(chosen["patient_id"]) - {""}, set(chosen["sha256"])


def identities(data: Dataset) -> pd.DataFrame:
    """Return the patient and the content hash of each image."""
    return pd.DataFrame({name: data.column(name) for name in ("patient_id", "sha256")})


def allowed(
    images: pd.DataFrame, rows: NDArray[np.int64], patients: set[str], contents: set[str]
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the rows that are of no held-out patient or content, and how many were refused."""
    chosen = images.iloc[rows]
    of_patient = chosen["patient_id"].isin(patients).to_numpy()
    of_content = chosen["sha256"].isin(contents).to_numpy() & ~of_patient
    refused = {"patient": int(of_patient.sum()), "content": int(of_content.sum())}
    return rows[~(of_patient | of_content)], refused


def _sources(dataset: Path, unlabelled: Path | None) -> list[Source]:
    main = open_dataset(dataset)
    patients, contents = held_out(main)
    sources = [Source(main, *allowed(identities(main), main.rows(Split.TRAIN), patients, contents))]
    if unlabelled is not None:
        other = open_dataset(unlabelled)
        if other.info.preprocessing_digest != main.info.preprocessing_digest:
            raise MismatchError(
                f"the unlabelled images have preprocessing {other.info.preprocessing_digest[:12]}, "
                f"the data set {main.info.preprocessing_digest[:12]}; ingest both by equal settings"
            )
        everything = np.arange(len(other), dtype=np.int64)
        # An image that is in both counts once.
        known = contents | set(main.column("sha256")[sources[0].rows])
        images = identities(other)
        rows, refused = allowed(images, everything, patients, contents)
        rows, _ = allowed(images, rows, set(), known)
        sources.append(Source(other, rows, refused))
    for source in sources:
        if any(source.refused.values()):
            _log.warning(
                "refused %d images of test or validation patients and %d that equal one of theirs",
                source.refused["patient"],
                source.refused["content"],
            )
    if not sum(len(source.rows) for source in sources):
        raise TrainingError(
            "no image is left to pre-train on; the data set needs training images, or give images "
            "of other patients as unlabelled"
        )
    return sources


def _pretext_data(
    sources: list[Source], config: PretrainConfig, stride: int, cache: Path, num_workers: int
) -> tuple[PretextData, RadiomicsNormalisation | None]:
    """Return images and targets of all sources as one, numbered through."""
    starts = np.cumsum([0, *(len(source.data) for source in sources)])
    rows = np.concatenate([s.rows + start for s, start in zip(sources, starts, strict=False)])
    identity: list[Any] = [[s.data.digest for s in sources], config.pretext.value, stride]

    def images(wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        parts = [(source.data.images, len(source.data)) for source in sources]
        return gathered(parts, wanted, sources[0].data.images(wanted[:0]))

    number = num_targets(config.pretext, stride)
    data = PretextData(
        images=images, targets=None, num_targets=number, rows=rows, identity=digest_of(identity)
    )
    if config.pretext is Pretext.PIXELS:
        return data, None
    made: list[Targets] = [
        prepare_targets(s.data, config.pretext, stride, cache, num_workers) for s in sources
    ]

    def raw(wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = [(of.of, len(source.data)) for of, source in zip(made, sources, strict=True)]
        return gathered(parts, wanted, made[0].shards[0][:0])

    even = rows[np.linspace(0, len(rows) - 1, min(len(rows), SCALING_IMAGES)).astype(np.int64)]
    scaling = fit_normalisation(_by_cell(raw(even)), number)
    partner = np.arange(starts[-1])
    if config.pretext is Pretext.PERMUTED:
        order = np.random.default_rng((config.seed, _PARTNERS)).permutation(len(rows))
        partner[rows] = rows[order]

    def scaled(wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        found = raw(partner[wanted])
        size, depth, height, width = found.shape
        cells = scaling.apply(_by_cell(found)).reshape(size, height, width, depth)
        return np.ascontiguousarray(cells.transpose(0, 3, 1, 2))

    own = digest_of([*identity, [targets.digest for targets in made]])
    return replace(data, targets=scaled, identity=own), scaling


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
) -> Targets:
    """Return the targets of a data set; they are made unless the cache has them.

    Args:
        data: Data set whose images are measured, all of them.
        pretext: `radiomics`, `permuted` or `hog`.
        stride: Pixels of a cell's side.
        cache: Folder that holds a directory per data set, measure and stride.
        num_workers: Processes, at least 1.

    Raises:
        ArtifactError: the cache was changed; it names the file.
        WorkerError: no process can be started, or one died twice of the same images.
    """
    name, measure, depth = _MEASURES[pretext]
    asked = {"measure": name, "stride": stride, "dataset_digest": data.digest}
    digest = digest_of(asked)
    folder = cache / f"{name}-{digest[:16]}"
    if not _HEAD.is_in(folder):
        work = partial(measured, measure, stride)
        side = data.info.preprocessing.image_side // stride
        with writing_directory(folder, _HEAD) as made:
            files = _write(made, data, work, (depth, side, side), num_workers)
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
) -> dict[str, str]:
    job = Job(work=work, failed=_give_up)
    chunks = _chunks(data)
    results = map(work, chunks) if num_workers == 1 else in_processes(chunks, job, num_workers)
    files = {}
    for number, size in enumerate(data.info.shard_sizes):
        path = folder / f"targets-{number:05d}.npy"
        shard = np.lib.format.open_memmap(path, "w+", np.float32, (size, *shape))
        filled = 0
        while filled < size:
            part = next(results)
            shard[filled : filled + len(part)] = part
            filled += len(part)
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


def _by_cell(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.transpose(0, 2, 3, 1).reshape(-1, values.shape[1])


def _record(
    sources: list[Source],
    config: PretrainConfig,
    network: NetworkConfig,
    scaling: RadiomicsNormalisation | None,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    info = sources[0].data.info
    is_radiomics = config.pretext in (Pretext.RADIOMICS, Pretext.PERMUTED)
    return {
        "pretext": config.pretext.value,
        "preprocessing_digest": info.preprocessing_digest,
        "settings": config.record(),
        "window_px": 2 * network.map_stride,
        "features": list(LOCAL_FEATURES) if is_radiomics else [],
        "scaling": None
        if scaling is None
        else {"median": scaling.median.tolist(), "spread": scaling.spread.tolist()},
        "sources": [
            {
                "dataset_digest": source.data.digest,
                "images": len(source.rows),
                "refused": source.refused,
            }
            for source in sources
        ],
        "history": history,
    }


def identity_of(uri: str) -> list[str]:
    """Return what changes whenever initial weights or an encoder do; empty without any."""
    if not uri:
        return []
    folder, prefix = open_store(uri)
    if folder.exists(prefix + ENCODER_FILE):
        return [info.etag for info in folder.list(prefix)]
    store, key = open_object(uri)
    return [store.stat(key).etag]


class Start(NamedTuple):
    """What a bundle records of the weights that its training began with."""

    settings: dict[str, Any]
    """Of an encoder; empty for a state dict."""
    provenance: list[dict[str, Any]]


def start_from(classifier: ChexRadiNet, uri: str, data: Dataset) -> Start:
    """Load initial weights, if any; return what a bundle records of them.

    Args:
        classifier: Changed in place.
        uri: Path or URI of an encoder or a torchvision state dict; empty leaves random weights.
        data: Data set to train on.
    """
    if not uri:
        return Start({}, [])
    folder, prefix = open_store(uri)
    with tempfile.TemporaryDirectory() as temporary:
        if folder.exists(prefix + ENCODER_FILE):
            local = Path(temporary) / "encoder"
            download_directory(uri, local)
            record = load_encoder(classifier, local, data.info.preprocessing_digest)
            kept = {name: record[name] for name in ("digest", "pretext", "sources")}
            return Start({"encoder": kept}, read_provenance(local))
        store, key = open_object(uri)
        local = Path(temporary) / Path(key).name
        store.get_file(key, local)
        load_imagenet_weights(classifier, local)
        return Start({}, [{"stage": "initial_weights", "sha256": sha256_of(local)}])
