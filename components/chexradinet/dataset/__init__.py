"""The data set directory: what `ingest` writes and every later stage reads.

    dataset.json         findings, preprocessing, counts, source, SHA-256 of every other file
    manifest.parquet     one row per image, in the order of the shards
    images-NNNNN.npy     pixels, uint8 (n, H, W)
    rejected.parquet     what did not enter, and why
    headers.parquet      one row per image of a DICOM source: device, encoding, window, flags
    doubtful.parquet     rejected X-rays that a person should look at, with their reason
    doubtful.npy         their pictures, uint8 (n, 200, 200)

Nothing in it depends on the clock or on the machine: the same input gives the same bytes, and so
the same digest. Shards are ordinary NumPy files that any tool opens; a shuffled batch is a gather
from mapped pages. `writing` makes the directory.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from mmap import MADV_DONTNEED, mmap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import Head, read_document, read_table, record_of, sha256_of, table_shape
from chexradinet.config import PreprocessingConfig, QualityConfig, digest_of
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.records import Box, Geometry, LabelledBox, RejectReason, Split, View

Value = TypeVar("Value", bound=np.generic)
Pixels = NDArray[np.uint8]
"""8-bit grey levels, 0 black."""


SCHEMA = 1
"""Version of everything in the directory."""
KIND = "dataset"
MANIFEST = "manifest.parquet"
_MANIFEST_KIND = "dataset-manifest", SCHEMA
REJECTED = "rejected.parquet"
DOCUMENT = "dataset.json"
HEADERS = "headers.parquet"
DOUBTFUL = "doubtful.parquet"
PICTURES = "doubtful.npy"
DATASET_HEAD = Head(DOCUMENT, KIND)
"""By which a directory is known for a data set."""
ID_COLUMNS = (
    "image_id",
    "patient_id",
    "study_id",
    "view",
    "age",
    "sex",
    "split",
    "source_uri",
    "sha256",
)
"""Columns of the manifest before those of the findings; `boxes` and `geometry` come after them."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """All that is kept of one X-ray beside its pixels."""

    image_id: str
    """Unique in the data set."""
    patient_id: str
    study_id: str = ""
    view: View = View.UNKNOWN
    age: float | None = None
    """Years at the time of the exposure, if known."""
    sex: str = ""
    """`F`, `M`, `O` or empty."""
    split: Split
    source_uri: str
    """Place of the original file, relative to the source."""
    sha256: str
    """Digest of the decoded original pixels, shape and type, not of the file's bytes."""
    labels: Mapping[str, float]
    """1 present, 0 absent, NaN unknown; a finding that is not named is unknown."""
    boxes: tuple[LabelledBox, ...] = ()
    """In pixels of the data set."""
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a file did not enter the data set."""

    source_uri: str
    reason: RejectReason
    detail: str = ""
    """What was wrong, without patient data."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Content of `dataset.json`."""

    findings: tuple[str, ...]
    """Canonical names, in the order of the label columns."""
    preprocessing: PreprocessingConfig
    source: str
    """Where the images came from, as the user gave it; a code if identifiers are replaced. Not
    part of the identity: the same files elsewhere give the same digest."""
    split_seed: int
    """Seed of the splits that no table gave."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """`images`, `patients`, `splits` and `patients_by_split` by split, `rejected` by reason, and
    `positives` by finding and split."""
    shard_sizes: tuple[int, ...] = ()
    """Images in each shard."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every other file of the directory, by name."""
    quality: QualityConfig | None = None
    """Limits that DICOM files were judged by; None if the source had none."""
    deidentified: bool = False
    """Whether codes stand for the source's identifiers."""
    ingest: Mapping[str, Any] = field(default_factory=dict)
    """By which settings it was made: `format`, `uncertain`, `validation_fraction`, `test_fraction`
    and `split_method`; and how many files of the source were of other kinds (`ignored_files`) and,
    if any, how many folders could not be listed (`unlisted_folders`). Empty in data sets of earlier
    releases."""

    finding_details: Mapping[str, Any] = field(default_factory=dict)
    """`urgency` and `code` of the findings that the settings give their own."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the manifest."""
        return (*ID_COLUMNS, *self.findings, "boxes", "geometry")

    @property
    def preprocessing_digest(self) -> str:
        """Digest that a model bundle must share."""
        return self.preprocessing.digest()

    @property
    def digest(self) -> str:
        """Identity of the data set: it changes with any byte of any other file."""
        return document_digest({"schema": SCHEMA, "kind": KIND, **self.as_document()})

    def as_document(self) -> dict[str, Any]:
        """Return JSON-ready values, without the digest."""
        document = {
            "findings": list(self.findings),
            "preprocessing": self.preprocessing.as_dict(),
            "preprocessing_digest": self.preprocessing_digest,
            "source": self.source,
            "split_seed": self.split_seed,
            "counts": dict(self.counts),
            "shard_sizes": list(self.shard_sizes),
            "files": dict(self.files),
        }
        if self.quality is not None:
            document["quality"] = self.quality.record()
        if self.deidentified:
            document["deidentified"] = True
        if self.ingest:
            document["ingest"] = dict(self.ingest)
        if self.finding_details:
            document["finding_details"] = dict(self.finding_details)
        return document


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the digest of `dataset.json`: of all it says but where the files came from."""
    return digest_of({name: value for name, value in document.items() if name != "source"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRow:
    """What is kept of one header; docs/deidentification.md says why it may be."""

    study_date: str = ""
    """YYYY-MM-DD, moved by the patient's own number of days; empty if unknown."""
    manufacturer: str = ""
    model: str = ""
    photometric_interpretation: str = ""
    transfer_syntax: str = ""
    """UID."""
    spacing_source: str = ""
    """`imager_pixel_spacing`, `pixel_spacing` or empty."""
    pixel_aspect_ratio: float = 1.0
    """Height of a pixel over its width."""
    window: str = ""
    """Which VOI LUT or window was applied."""
    flags: str = ""
    """Oddities that the quality gate let pass, joined by a vertical bar."""


class Dataset:
    """A data set on disk, its pixels mapped and never loaded as a whole."""

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.path = path
        self.info = info
        self._size, found = table_shape(path / MANIFEST, *_MANIFEST_KIND)
        columns = list(info.columns)
        if found != columns or self._size != sum(info.shard_sizes):
            raise ArtifactError(
                f"{path / MANIFEST} has {self._size} rows and columns {found}, but {DOCUMENT} says "
                f"{sum(info.shard_sizes)} rows and {columns}; make the data set again"
            )
        self._columns: dict[str, NDArray[Any]] = {}
        self._side = info.preprocessing.image_side
        self._shards = [
            _mapped(path / shard_name(number), (size, self._side, self._side))
            for number, size in enumerate(info.shard_sizes)
        ]

    def __len__(self) -> int:
        return self._size

    @property
    def digest(self) -> str:
        """Identity of the data set."""
        return self.info.digest

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row per image, columns as in `DatasetInfo.columns`: about 1 kB an image."""
        return self._read(None)

    def _read(self, columns: Sequence[str] | None) -> pd.DataFrame:
        """Return columns of the manifest, of the very file that this data set was opened with.

        Raises:
            ArtifactError: the directory was replaced, so that pixels and manifest are of two.
        """
        if sha256_of(self.path / MANIFEST) != self.info.files[MANIFEST]:
            raise ArtifactError(
                f"{self.path / MANIFEST} was changed after the data set was opened; run the stage "
                "again, and ingest to a folder that nothing reads"
            )
        return read_table(self.path / MANIFEST, *_MANIFEST_KIND, columns)[0]

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of the manifest, shape (N,); nothing else of it is read."""
        if name not in self._columns:
            self._columns[name] = self._read([name])[name].to_numpy()
        return self._columns[name]

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """Labels of shape (N, F): 1 present, 0 absent, NaN unknown."""
        return self._read(self.info.findings).to_numpy(dtype=np.float32)

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the rows of one split, ascending."""
        return np.flatnonzero(self.column("split") == split.value).astype(np.int64)

    def images(self, rows: NDArray[np.int64]) -> Pixels:
        """Copy images of shape (B, H, W) out of the memory maps, in the order of `rows`.

        Raises:
            IndexError: a row is negative or beyond the last.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"rows {wanted.min()} to {wanted.max()} asked of a data set of {len(self)} images"
            )
        empty: Pixels = np.empty((0, self._side, self._side), dtype=np.uint8)
        found = gathered([(shard.__getitem__, len(shard)) for shard in self._shards], wanted, empty)
        for shard in self._shards:
            if isinstance(shard.base, mmap):
                # Else what was read counts as this process's memory until it ends.
                shard.base.madvise(MADV_DONTNEED)
        return found

    def boxes(self, row: int) -> tuple[LabelledBox, ...]:
        """Return the boxes of one image, in pixels of the data set."""
        found = json.loads(self.column("boxes")[row])
        return tuple(LabelledBox(item.pop("finding"), Box(**item)) for item in found)

    def geometry(self, row: int) -> Geometry:
        """Return the map from one image's pixels to those of its original."""
        return Geometry(**json.loads(self.column("geometry")[row]))

    def row_of(self, image_ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the row of each image, in the order given.

        Raises:
            MismatchError: an image is not in this data set.
        """
        wanted = list(image_ids)
        rows = self._index.get_indexer(pd.Index(wanted, dtype="object")).astype(np.int64)
        if (rows < 0).any():
            unknown = [name for name, row in zip(wanted, rows, strict=True) if row < 0]
            raise MismatchError(
                f"{len(unknown)} of {len(wanted)} images are not in data set {self.digest[:12]}, "
                f"the first is {unknown[0]!r}; use the data set that the table was made from"
            )
        return rows

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """What did not enter: `source_uri`, `reason`, `detail`."""
        return read_table(self.path / REJECTED, "dataset-rejected", SCHEMA)[0]

    @cached_property
    def _index(self) -> "pd.Index[Any]":
        return pd.Index(self.column("image_id"), dtype="object")


def _read_info(path: Path) -> DatasetInfo:
    document = read_document(path / DOCUMENT, KIND, SCHEMA)
    digest = document.pop("digest", None)
    if digest != document_digest(document):
        raise ArtifactError(
            f"{path / DOCUMENT} does not match its own digest; it was changed or cut short, "
            "make the data set again"
        )
    info = record_of(DatasetInfo, document)
    if info.preprocessing_digest != document["preprocessing_digest"]:
        raise ArtifactError(
            f"{path / DOCUMENT} has preprocessing {document['preprocessing_digest'][:12]}, but "
            f"this release computes {info.preprocessing_digest[:12]} from the same settings; make "
            "the data set again"
        )
    return info


def open_dataset(path: Path, verify: bool = True) -> Dataset:
    """Open a data set directory.

    Args:
        path: The directory.
        verify: Read every file and compare its SHA-256 with `dataset.json`.

    Raises:
        ArtifactError: a file is missing, of another kind or version, or a byte of it changed.
    """
    info = _read_info(path)
    for name, expected in info.files.items():
        if not (path / name).is_file():
            raise ArtifactError(f"{path / name} is missing; make the data set again")
        if verify and sha256_of(path / name) != expected:
            raise ArtifactError(
                f"the bytes of {path / name} are not those that {DOCUMENT} names; the file was "
                "changed or cut short, make the data set again"
            )
    return Dataset(path, info)


def gathered(
    parts: Sequence[tuple[Callable[[NDArray[np.int64]], NDArray[Value]], int]],
    rows: NDArray[np.int64],
    empty: NDArray[Value],
) -> NDArray[Value]:
    """Return values of rows that are numbered through several parts.

    Args:
        parts: What gives the values of a part's own rows, and how many rows it has.
        rows: Rows to give, in this order.
        empty: Values of no row: their shape and type.
    """
    ends = np.cumsum([size for _, size in parts], dtype=np.int64)
    numbers = np.searchsorted(ends, rows, side="right")
    found = np.empty((len(rows), *empty.shape[1:]), empty.dtype)
    for number in np.unique(numbers):
        chosen = np.flatnonzero(numbers == number)
        fetch, size = parts[number]
        found[chosen] = fetch(rows[chosen] - (ends[number] - size))
    return found


def shard_name(number: int) -> str:
    """Return the file name of a shard; numbers start at 0."""
    return f"images-{number:05d}.npy"


def _mapped(path: Path, shape: tuple[int, int, int]) -> Pixels:
    """Map a shard read-only, without reading it."""
    try:
        shard: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; make the data set again") from error
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or not a shard ({error}); make it again") from error
    if shard.shape != shape or shard.dtype != np.uint8:
        raise ArtifactError(
            f"{path} holds {shard.dtype} of shape {shard.shape}, but {DOCUMENT} says uint8 of "
            f"shape {shape}; make the data set again"
        )
    return shard


def read_headers(directory: Path) -> pd.DataFrame | None:
    """Return `headers.parquet`, or None if the data set has none."""
    if not (directory / HEADERS).is_file():
        return None
    return read_table(directory / HEADERS, "dataset-headers", SCHEMA)[0]


def read_doubtful(directory: Path) -> list[tuple[str, str, NDArray[np.uint8]]]:
    """Return file name, reason and picture of each doubtful X-ray; empty if there is none."""
    if not (directory / DOUBTFUL).is_file():
        return []
    frame, _ = read_table(directory / DOUBTFUL, "dataset-doubtful", SCHEMA)
    pictures = np.load(directory / PICTURES, allow_pickle=False)
    return list(zip(frame["source_uri"], frame["reason"], pictures, strict=True))
