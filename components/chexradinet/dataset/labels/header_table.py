"""What is kept of DICOM headers beside the manifest, and pictures of what looked doubtful.

    headers.parquet     a row an image, in the manifest's order: device, encoding, window, flags
    doubtful.parquet    rejected X-rays that a person should look at, with their reason
    doubtful.npy        their pictures, uint8 (n, 200, 200)

Only data sets of DICOM files have them. Nothing here needs a DICOM reader.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexradinet.artifacts import read_table, write_table

SCHEMA = 1
HEADERS = "headers.parquet"
DOUBTFUL = "doubtful.parquet"
PICTURES = "doubtful.npy"
PICTURE_SIDE_PX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRow:
    """What is kept of one header; docs/deidentification.md says why it may be."""

    study_date: str = ""
    """YYYY-MM-DD, moved by the patient's own number of days; empty where unknown."""
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


def write_headers(directory: Path, image_ids: Sequence[str], rows: Sequence[HeaderRow]) -> None:
    """Write `headers.parquet`."""
    columns = [asdict(row) for row in rows]
    frame = pd.DataFrame(
        [{"image_id": name, **row} for name, row in zip(image_ids, columns, strict=True)]
    )
    write_table(directory / HEADERS, frame, "dataset-headers", SCHEMA)


def read_headers(directory: Path) -> pd.DataFrame | None:
    """Return `headers.parquet`, or None where the data set has none."""
    if not (directory / HEADERS).is_file():
        return None
    return read_table(directory / HEADERS, "dataset-headers", SCHEMA)[0]


def write_doubtful(
    directory: Path, names: Sequence[tuple[str, str]], pictures: Sequence[NDArray[np.uint8]]
) -> None:
    """Write pictures of shape (200, 200), each with its file's name and the reason code."""
    frame = pd.DataFrame(names, columns=["source_uri", "reason"], dtype="object")
    write_table(directory / DOUBTFUL, frame, "dataset-doubtful", SCHEMA)
    np.save(directory / PICTURES, np.stack(pictures), allow_pickle=False)


def read_doubtful(directory: Path) -> list[tuple[str, str, NDArray[np.uint8]]]:
    """Return file name, reason and picture of each doubtful X-ray; empty where there is none."""
    if not (directory / DOUBTFUL).is_file():
        return []
    frame, _ = read_table(directory / DOUBTFUL, "dataset-doubtful", SCHEMA)
    pictures = np.load(directory / PICTURES, allow_pickle=False)
    return list(zip(frame["source_uri"], frame["reason"], pictures, strict=True))
