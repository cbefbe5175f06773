"""Tables of regions and of their radiomics features: columns, types, and how they are filled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.errors import ArtifactError
from chexradinet.records import FeatureStatus, Region
from chexradinet.regions.feature_names import FEATURE_NAMES

BOX_COLUMNS = ("top", "left", "bottom", "right")
"""Half-open box in model pixels; NaN where the status is not `ok`."""

REGION_COLUMNS = (
    "image_id",
    "finding",
    "score",
    *BOX_COLUMNS,
    "peak_row",
    "peak_col",
    "status",
)
"""Columns of `regions.parquet`."""

FEATURE_COLUMNS = ("image_id", "status", *FEATURE_NAMES)
"""Columns of `features.parquet`; the 102 values are NaN where the status is not `ok`."""

_TEXT_COLUMNS = {"image_id", "finding", "status"}


@dataclass(frozen=True, slots=True, eq=False)
class FeatureRow:
    """The features of one region."""

    status: FeatureStatus
    values: NDArray[np.float64]
    """In the order of `FEATURE_NAMES`, shape (102,); all NaN where the status is not `OK`."""


def rejected_row(status: FeatureStatus) -> FeatureRow:
    """Return a row without values."""
    return FeatureRow(status, np.full(len(FEATURE_NAMES), np.nan))


def regions_table(
    image_ids: Sequence[str],
    findings: Sequence[str],
    scores: Iterable[float],
    regions: Sequence[Region],
) -> pd.DataFrame:
    """Return the table of regions, one row each; `image_ids` and the others run along them."""
    missing = (np.nan,) * len(BOX_COLUMNS)
    sides = [
        (region.box.top, region.box.left, region.box.bottom, region.box.right)
        if region.box is not None
        else missing
        for region in regions
    ]
    frame = pd.DataFrame(sides, columns=list(BOX_COLUMNS), dtype=np.float64)
    peaks = [(region.peak_row, region.peak_column) for region in regions]
    frame[["peak_row", "peak_col"]] = np.asarray(peaks, dtype=np.float64).reshape(-1, 2)
    frame["image_id"] = list(image_ids)
    frame["finding"] = list(findings)
    frame["score"] = np.asarray(list(scores), dtype=np.float64)
    frame["status"] = [region.status.value for region in regions]
    return frame[list(REGION_COLUMNS)]


def features_table(
    image_ids: Sequence[str], statuses: Sequence[str], values: NDArray[np.float64]
) -> pd.DataFrame:
    """Return the table of features; `values` has shape (n, 102)."""
    frame = pd.DataFrame(values, columns=list(FEATURE_NAMES), dtype=np.float64)
    frame.insert(0, "image_id", list(image_ids))
    frame.insert(1, "status", list(statuses))
    return frame


def checked_table(table: pd.DataFrame, columns: tuple[str, ...], where: Path) -> pd.DataFrame:
    """Return the columns in their order and types.

    Raises:
        ArtifactError: a column is missing or unknown.
    """
    missing, unknown = set(columns) - set(table.columns), set(table.columns) - set(columns)
    if missing or unknown:
        raise ArtifactError(
            f"the table of {where} lacks the columns {sorted(missing)[:5]} and has the unknown "
            f"columns {sorted(unknown)[:5]}; make it with this release"
        )
    kinds = {name: object if name in _TEXT_COLUMNS else np.float64 for name in columns}
    return table[list(columns)].astype(kinds)
