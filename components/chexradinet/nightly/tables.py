"""Tables of a night, and the object that holds all of a shard; columns as in docs/results.md.

What says how long something took stands in the last columns of the scores: equal runs give equal
rows before them, byte for byte.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from chexradinet.artifacts import check_schema, table_bytes, table_of
from chexradinet.errors import ArtifactError
from chexradinet.regions.feature_names import FEATURE_NAMES

SCHEMA = 3
"""Version of every table here."""

RADIOMICS_COLUMNS = tuple(f"radiomics_{name}" for name in FEATURE_NAMES)
"""The 102 features, in their stored order."""

TIMINGS = ("read_s", "decode_s", "forward_s", "regions_s", "dicom_s")
"""Seconds of an X-ray, the last columns of its scores; those of a batch in equal parts."""

_BOX_PX = [(f"region_{side}_px", pa.float64()) for side in ("top", "left", "bottom", "right")]
_BOX_MM = [(f"region_{side}_mm", pa.float64()) for side in ("top", "left", "bottom", "right")]

SCORES = pa.schema(
    [
        ("image_key", pa.string()),
        ("study_uid", pa.string()),
        ("sop_uid", pa.string()),
        ("object_key", pa.string()),
        ("finding", pa.string()),
        ("raw_score", pa.float64()),
        ("probability", pa.float64()),
        ("calibration", pa.string()),
        ("threshold", pa.float64()),
        ("flagged", pa.bool_()),
        ("region_status", pa.string()),
        *_BOX_PX,
        *_BOX_MM,
        ("spacing_source", pa.string()),
        ("peak_row_px", pa.float64()),
        ("peak_column_px", pa.float64()),
        ("view", pa.string()),
        ("quality", pa.string()),
        ("out_of_distribution", pa.bool_()),
        ("out_of_distribution_score", pa.float64()),
        ("model_digest", pa.string()),
        ("preprocessing_digest", pa.string()),
        ("plan", pa.int32()),
        ("radiomics_status", pa.string()),
        *((name, pa.float64()) for name in (*RADIOMICS_COLUMNS, *TIMINGS)),
    ]
)
"""Scores: a row an X-ray and finding."""

REJECTED = pa.schema(
    [
        ("object_key", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("plan", pa.int32()),
    ]
)
"""Objects of a plan without scores."""

IMAGES = pa.schema(
    [
        ("image_key", pa.string()),
        ("object_key", pa.string()),
        ("etag", pa.string()),
        ("study_uid", pa.string()),
        ("patient_key", pa.string()),
        ("arrived", pa.string()),
        ("view", pa.string()),
        ("age_years", pa.float64()),
        ("sex", pa.string()),
        ("manufacturer", pa.string()),
        ("quality", pa.string()),
        ("out_of_distribution", pa.bool_()),
        ("out_of_distribution_score", pa.float64()),
        ("pixel_mean", pa.float64()),
        ("pixel_std", pa.float64()),
        ("probabilities", pa.list_(pa.float64())),
        ("flags", pa.list_(pa.bool_())),
        ("embedding", pa.list_(pa.float32())),
    ]
)
"""A row a scored X-ray, for worklist, report and drift; stays in the ledger."""

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("image_key", pa.string()),
        ("status", pa.string()),
    ]
)
"""What became of each object of a plan."""

_TABLES = {"scores": SCORES, "rejected": REJECTED, "images": IMAGES}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """All that came of a shard."""

    scores: pa.Table
    rejected: pa.Table
    images: pa.Table
    wall_s: float
    """Seconds that the shard took."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files of flagged X-rays, by image key: each with heatmap and region."""


def table_from(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table of a fixed schema; a column that a row lacks is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def pack(result: ShardResult) -> bytes:
    """Return a shard's results as one ZIP archive; equal results give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        head = {"schema": SCHEMA, "kind": "nightly-shard", "wall_s": result.wall_s}
        _add(archive, "shard.json", json.dumps(head, sort_keys=True).encode())
        for name in _TABLES:
            table = getattr(result, name)
            _add(archive, f"{name}.parquet", table_bytes(table, f"nightly-{name}", SCHEMA))
        for key, png in sorted(result.pictures.items()):
            _add(archive, f"pictures/{key}.png", png)
    return stream.getvalue()


def unpack(data: bytes, where: str) -> ShardResult:
    """Read what `pack` wrote.

    Raises:
        ArtifactError: it is no whole archive.
        SchemaError: it is of another schema version.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            head = json.loads(archive.read("shard.json"))
            check_schema(head, "nightly-shard", SCHEMA, Path(where))
            tables = {
                name: table_of(archive.read(f"{name}.parquet"), f"nightly-{name}", SCHEMA, where)
                for name in _TABLES
            }
            pictures = {
                name.removeprefix("pictures/").removesuffix(".png"): archive.read(name)
                for name in archive.namelist()
                if name.startswith("pictures/")
            }
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ArtifactError(f"{where} is no whole shard ({error}); restore it") from error
    return ShardResult(**tables, wall_s=float(head["wall_s"]), pictures=pictures)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
