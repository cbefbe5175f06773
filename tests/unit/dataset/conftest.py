"""Small data sets that tests write and read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import PreprocessingConfig
from chexradinet.dataset import (
    DatasetInfo,
    ImageRecord,
    Rejection,
)
from chexradinet.records import Box, Geometry, LabelledBox, RejectReason, Split, View
from tests.dataset_world import writing_dataset

SIDE = 32


def a_record(number: int, **changed: object) -> ImageRecord:
    """Return the record of image `number`, patient `number // 2`, split by patient."""
    patient = number // 2
    facts: dict[str, object] = {
        "image_id": f"image-{number}",
        "patient_id": f"patient-{patient}",
        "study_id": f"study-{number}",
        "view": View.AP if number % 2 else View.PA,
        "age": None if number == 0 else 40.5 + number,
        "sex": "F",
        "split": list(Split)[patient % 3],
        "source_uri": f"folder/{number}.png",
        "sha256": f"{number:064x}",
        "labels": {"Mass": float(number % 2), "Nodule": float("nan")},
        "boxes": (LabelledBox("Mass", Box(1.5, 2, 3, 4.25)),) if number % 2 else (),
        "geometry": Geometry(
            original_height=64, original_width=100, row_scale=2.0, column_scale=100 / SIDE
        ),
    }
    return ImageRecord(**{**facts, **changed})  # type: ignore[arg-type]


def pixels_of(number: int) -> np.ndarray:
    """Return pixels that tell which image they are."""
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def write_small(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a data set of some images in shards of three."""

    def write(name: str = "dataset", num_images: int = 8) -> Path:
        info = DatasetInfo(
            findings=("Mass", "Nodule"),
            preprocessing=PreprocessingConfig(image_side=SIDE),
            source="somewhere",
            split_seed=7,
        )
        with writing_dataset(tmp_path / name, info, shard_size=3) as writer:
            for number in range(num_images):
                writer.add(a_record(number), pixels_of(number))
            writer.reject(Rejection("folder/broken.png", RejectReason.TRUNCATED, "cut short"))
        return tmp_path / name

    return write
