"""What a data set directory holds, as values: the records of `format.py` and `writing.py`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from chexradinet.config import PreprocessingConfig, QualityConfig, digest_of
from chexradinet.records import Geometry, LabelledBox, RejectReason, Split, View
from chexradinet.replacing import Head

SCHEMA = 1
"""Version of everything in the directory."""
KIND = "dataset"
MANIFEST = "manifest.parquet"
REJECTED = "rejected.parquet"
DOCUMENT = "dataset.json"
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
    """Years at the time of the exposure, where known."""
    sex: str = ""
    """`F`, `M`, `O` or empty."""
    split: Split
    source_uri: str
    """Place of the original file, relative to the source."""
    sha256: str
    """Of the decoded original pixels with their shape and type, not of the file's bytes."""
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
    """Where the images came from, as the user gave it; a code where identifiers are replaced. Not
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
    """Limits that DICOM files were judged by; None where the source had none."""
    deidentified: bool = False
    """Whether codes stand for the source's identifiers."""
    ingest: Mapping[str, Any] = field(default_factory=dict)
    """By which settings it was made: `format`, `uncertain`, `validation_fraction` and
    `test_fraction`; and `ignored_files`, how many files of the source were of other kinds. Empty in
    data sets of earlier releases."""

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
            document["quality"] = asdict(self.quality)
        if self.deidentified:
            document["deidentified"] = True
        if self.ingest:
            document["ingest"] = dict(self.ingest)
        return document


def document_digest(document: Mapping[str, Any]) -> str:
    """Return the digest of `dataset.json`: of all it says but where the files came from."""
    return digest_of({name: value for name, value in document.items() if name != "source"})


def count(
    manifest: pd.DataFrame, findings: Sequence[str], rejections: Sequence[Rejection]
) -> dict[str, Any]:
    """Return the counts of a data set, as `DatasetInfo.counts` describes them."""
    parts = {split.value: manifest[manifest["split"] == split.value] for split in Split}
    reasons = Counter(rejection.reason.value for rejection in rejections)
    return {
        "images": len(manifest),
        "patients": int(manifest["patient_id"].nunique()),
        "splits": {name: len(part) for name, part in parts.items()},
        "patients_by_split": {
            name: int(part["patient_id"].nunique()) for name, part in parts.items()
        },
        "rejected": dict(sorted(reasons.items())),
        "positives": {
            finding: {name: int((part[finding] == 1).sum()) for name, part in parts.items()}
            for finding in findings
        },
    }
