"""What the night keeps of an X-ray: from the decoded file to the tables and the shard's object.

An object of the inbox is read as an `XRay` or is `Excluded`. Scoring makes a `NightCase` of an
X-ray. What tables, report and DICOM results say is made of that case, with columns as in
docs/results.md. Times stand in the last columns of the scores: equal runs give equal rows before
them, byte for byte.
"""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexradinet.artifacts import check_schema, table_bytes, table_of
from chexradinet.config import Precision, require
from chexradinet.config.nightly import ResultSettings
from chexradinet.dicom import is_dicomweb, parse_archive
from chexradinet.dicom_results import ScoredFinding
from chexradinet.errors import ArtifactError
from chexradinet.records import Geometry, Region
from chexradinet.regions import FEATURE_NAMES
from chexradinet.store.uri import parse_uri

SCORED, DUPLICATE = "scored", "duplicate"
POSTPONED, VANISHED, REJECTED, NOT_SCORED = "postponed", "vanished", "rejected", "not_scored"
"""Statuses of an object of a plan; the first two have scores."""

SCHEMA = 4
"""Version of every table here: 4 leaves out what is not known, and says how far a flag holds."""
SHARD_SCHEMA = 4
"""Version of a shard's archive: 4 names the plan that it was scored for."""

RADIOMICS_COLUMNS = tuple(f"radiomics_{name}" for name in FEATURE_NAMES)
"""The 102 features, in their stored order."""

TIMINGS = ("read_s", "decode_s", "forward_s", "regions_s", "dicom_s")
"""Seconds per X-ray, the last columns of its scores; those of a batch in equal parts."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_SIDES = ("top", "left", "bottom", "right")
_TEXT, _REAL, _FLAG = pa.string(), pa.float64(), pa.bool_()


def _fields(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names]


SCORES = pa.schema(
    [
        *_fields(_TEXT, "image_key", "study_uid", "sop_uid", "object_key", "finding"),
        *_fields(_REAL, "raw_score", "probability"),
        *_fields(_TEXT, "calibration"),
        *_fields(_REAL, "threshold"),
        *_fields(_FLAG, "flagged"),
        *_fields(_REAL, "sensitivity", "specificity"),
        *_fields(_TEXT, "region_status"),
        *_fields(_REAL, *(f"region_{side}_px" for side in _SIDES)),
        *_fields(_REAL, *(f"region_{side}_mm" for side in _SIDES)),
        *_fields(_TEXT, "spacing_source"),
        *_fields(_REAL, "peak_row_px", "peak_column_px"),
        *_fields(_TEXT, "view", "quality"),
        *_fields(_FLAG, "out_of_distribution"),
        *_fields(_REAL, "out_of_distribution_score"),
        *_fields(_TEXT, "model_digest", "preprocessing_digest"),
        *_fields(pa.int32(), "plan"),
        *_fields(_TEXT, "radiomics_status"),
        *_fields(_REAL, *RADIOMICS_COLUMNS, *TIMINGS),
    ]
)
"""Scores: a row per X-ray and finding; `probability` only if calibrated, `flagged` if assessed."""

EXCLUDED = pa.schema(
    [
        *_fields(_TEXT, "object_key", "status", "reason", "detail"),
        *_fields(pa.int32(), "plan"),
    ]
)
"""Objects of a plan without scores of their own."""

IMAGES = pa.schema(
    [
        *_fields(_TEXT, "image_key", "object_key", "etag", "study_uid", "patient_key", "arrived"),
        *_fields(_TEXT, "view"),
        *_fields(_REAL, "age_years"),
        *_fields(_TEXT, "sex", "manufacturer", "accession", "patient_id", "study_date", "quality"),
        *_fields(_FLAG, "out_of_distribution"),
        *_fields(_REAL, "out_of_distribution_score", "pixel_mean", "pixel_std"),
        *_fields(pa.list_(_REAL), "probabilities"),
        *_fields(pa.list_(_FLAG), "flags"),
        *_fields(pa.list_(pa.float32()), "embedding"),
    ]
)
"""A row per scored X-ray, for worklist, report and drift; stays in the ledger."""

INDEX = pa.schema(_fields(_TEXT, "key", "etag", "image_key", "status"))
"""What became of each object of a plan."""

_TABLES = {"scores": SCORES, "rejected": EXCLUDED, "images": IMAGES}


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the nightly run reads and writes; paths, `s3://` or `minio://` URIs."""

    inbox_uri: str
    """Folder that X-rays arrive in: DICOM, PNG or JPEG; or `dicomweb://host/path?last_days=2`."""
    models_uri: str
    """Folder that models are published under."""
    results_uri: str
    """Folder of the results and the ledger; not within the inbox, nor around it."""
    archive_uri: str = ""
    """Archive that DICOM results are sent to, as `dicomweb://host/path`; empty sends none."""

    def __post_init__(self) -> None:
        """Refuse an inbox in which results would arrive as X-rays.

        Raises:
            ConfigError: an address cannot be read, or one of inbox and results holds the other.
        """
        if self.archive_uri:
            parse_archive(self.archive_uri, dates_needed=False)
        if is_dicomweb(self.inbox_uri):
            return
        inbox, results = (_folder(uri) for uri in (self.inbox_uri, self.results_uri))
        apart = not (inbox.startswith(results) or results.startswith(inbox))
        require(apart, "results_uri", self.results_uri, "a folder beside the inbox, not in it")


def same_place(inbox_uri: str, other_uri: str) -> bool:
    """Tell whether two addresses are of one inbox; the dates of an archive's may differ."""
    if is_dicomweb(inbox_uri) or is_dicomweb(other_uri):
        return inbox_uri.partition("?")[0] == other_uri.partition("?")[0]
    return parse_uri(inbox_uri) == parse_uri(other_uri)


def _folder(uri: str) -> str:
    location = parse_uri(uri)
    return f"{location.bucket or ''}:{location.key.rstrip('/')}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class XRay:
    """One X-ray of a night, ready for the network."""

    object_key: str
    """Name below the inbox."""
    image_key: str
    """SHA-256 of the SOP Instance UID, or of the content if there is none."""
    study_uid: str
    """Study Instance UID, or the image key if there is none."""
    sop_uid: str = ""
    """SOP Instance UID; empty if there is none."""
    patient_key: str
    """Tells patients apart within a night, and says nothing about who they are."""
    pixels: npt.NDArray[np.uint8]
    """Model pixels, shape (S, S)."""
    geometry: Geometry
    """From model pixels to original pixels, with spacing if known."""
    view: str = ""
    """`PA`, `AP` or empty."""
    age_years: float | None = None
    sex: str = ""
    manufacturer: str = ""
    accession: str = ""
    """Accession number; like the next two, empty unless the worklist is to show it."""
    patient_id: str = ""
    study_date: str = ""
    """`YYYY-MM-DD`."""
    quality: tuple[str, ...]
    """Data-quality notes that the quality gate let pass."""
    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Excluded:
    """One object of the plan that has no scores, and why."""

    object_key: str
    status: str
    """`rejected`, `postponed`, `vanished` or `not_scored`."""
    reason: str
    """A `RejectReason` if it is rejected or not scored, else a word."""
    detail: str
    """Without patient data."""

    def row(self, plan: int) -> dict[str, Any]:
        """Return the row of the table of excluded objects."""
        return asdict(self) | {"plan": plan}


@dataclass(frozen=True, kw_only=True)
class NightFinding(ScoredFinding):
    """What the model says about one finding in one X-ray; `region` is in original pixels."""

    raw_score: float
    """Logit."""
    model_region: Region
    """Where the map is high, in model pixels."""
    heatmap: npt.NDArray[np.float32]
    """Class activation map, shape (h, w)."""
    radiomics_status: str
    """A `FeatureStatus`, or `not_flagged` or `not_assessed` for the findings without features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NightCase:
    """One scored X-ray of a night."""

    xray: XRay
    findings: tuple[NightFinding, ...]
    """In the model's order."""
    ood_score: float | None
    """Distance from the reference; None if the model has none."""
    out_of_distribution: bool | None
    """Whether the model was not made for X-rays like this one; None if it cannot tell."""


def urgency(case: NightCase, settings: ResultSettings) -> tuple[float, NightFinding] | None:
    """Return how urgent a flagged X-ray is, and its most urgent finding; None without a flag."""
    products = [
        (settings.worklist.urgency_of(found.name) * found.probability, found)
        for found in case.findings
        if found.flagged
    ]
    return min(products, key=lambda pair: (-pair[0], pair[1].name), default=None)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """All results of a shard."""

    plan_sha256: str
    """Digest of the plan that it was scored for; see `Plan.digest`."""
    scores: pa.Table
    rejected: pa.Table
    images: pa.Table
    wall_s: float
    """Seconds that the shard took."""
    precision: str = Precision.FLOAT32.value
    """Arithmetic of the network."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files of flagged X-rays, by image key: each with heatmap and region."""


def table_from(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of a fixed schema; a column that a row lacks is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def pack(result: ShardResult) -> bytes:
    """Return a shard's results as one ZIP archive; equal results give equal bytes."""
    head = {
        "schema": SHARD_SCHEMA,
        "kind": "nightly-shard",
        "plan_sha256": result.plan_sha256,
        "wall_s": result.wall_s,
        "precision": result.precision,
    }
    members = {"shard.json": json.dumps(head, sort_keys=True).encode()}
    for name in _TABLES:
        data = table_bytes(getattr(result, name), f"nightly-{name}", SCHEMA)
        members[f"{name}.parquet"] = data
    members |= {f"pictures/{key}.png": png for key, png in sorted(result.pictures.items())}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    return stream.getvalue()


def unpack(data: bytes, where: str) -> ShardResult:
    """Read what `pack` wrote.

    Raises:
        ArtifactError: it is not a whole archive.
        SchemaError: it is of another schema version.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            head = dict(json.loads(archive.read("shard.json")))
            check_schema(head, "nightly-shard", SHARD_SCHEMA, Path(where))
            tables = {
                name: table_of(archive.read(f"{name}.parquet"), f"nightly-{name}", SCHEMA, where)
                for name in _TABLES
            }
            pictures = {
                name.removeprefix("pictures/").removesuffix(".png"): archive.read(name)
                for name in archive.namelist()
                if name.startswith("pictures/")
            }
            of_plan, wall_s = str(head["plan_sha256"]), float(head["wall_s"])
            # Earlier releases computed in float32 and did not say so.
            precision = str(head.get("precision", Precision.FLOAT32.value))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where} is not a whole shard ({error}); restore it") from error
    return ShardResult(
        **tables, plan_sha256=of_plan, wall_s=wall_s, precision=precision, pictures=pictures
    )


@dataclass(frozen=True, kw_only=True)
class ShardOutcome:
    """What came of a shard."""

    status: str
    """`scored`, or `done_before` if its results were there already."""
    num_scored: int = 0
    num_excluded: int = 0
