import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexradinet.artifacts import write_document
from chexradinet.config import PreprocessingConfig
from chexradinet.dataset import (
    DatasetInfo,
    ImageRecord,
    open_dataset,
)
from chexradinet.errors import ArtifactError, ConfigError, LabelTableError, MismatchError
from chexradinet.records import Box, Geometry, LabelledBox, Split
from tests.dataset_world import writing_dataset

SIDE = 32
WriteSmall = Callable[..., Path]


def info_of(findings: tuple[str, ...] = ("Mass",)) -> DatasetInfo:
    return DatasetInfo(
        findings=findings,
        preprocessing=PreprocessingConfig(image_side=SIDE),
        source="here",
        split_seed=0,
    )


def record_of(image_id: str = "a", **labels: float) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        patient_id="p",
        split=Split.TRAIN,
        source_uri="a.png",
        sha256="",
        labels=labels,
        geometry=Geometry(
            original_height=SIDE, original_width=SIDE, row_scale=1.0, column_scale=1.0
        ),
    )


def write(folder: Path, *images: tuple[ImageRecord, np.ndarray]) -> None:
    with writing_dataset(folder, info_of(), shard_size=2) as writer:
        for record, pixels in images:
            writer.add(record, pixels)


def test_data_set_without_images_is_whole_and_empty(tmp_path: Path) -> None:
    with writing_dataset(tmp_path / "empty", info_of()):
        pass
    dataset = open_dataset(tmp_path / "empty")
    assert len(dataset) == 0
    assert dataset.labels.shape == (0, 1)
    assert dataset.images(np.array([], dtype=np.int64)).shape == (0, SIDE, SIDE)
    assert dataset.info.counts["splits"] == {"train": 0, "validation": 0, "test": 0}


def test_pixels_come_back_in_the_order_asked_over_shards(write_small: WriteSmall) -> None:
    dataset = open_dataset(write_small())
    assert dataset.info.shard_sizes == (3, 3, 2)
    rows = np.array([7, 0, 5, 5, 2, 3])
    images = dataset.images(rows)
    for image, row in zip(images, rows, strict=True):
        expected = np.random.default_rng(row).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(dataset.images(np.array([row]))[0], expected)


@pytest.mark.parametrize("row", [-1, 8])
def test_row_outside_the_data_set_is_an_error(write_small: WriteSmall, row: int) -> None:
    with pytest.raises(IndexError, match="8 images"):
        open_dataset(write_small()).images(np.array([0, row]))


def test_everything_known_of_an_image_comes_back(write_small: WriteSmall) -> None:
    dataset = open_dataset(write_small())
    manifest = dataset.manifest
    assert list(manifest.columns) == [
        *("image_id", "patient_id", "study_id", "view", "age", "sex", "split", "source_uri"),
        *("sha256", "Mass", "Nodule", "boxes", "geometry"),
    ]
    assert manifest["view"].tolist()[:3] == ["PA", "AP", "PA"]
    assert math.isnan(manifest["age"][0])
    assert manifest["age"][3] == 43.5
    assert dataset.labels[:, 0].tolist() == [0, 1] * 4
    assert np.isnan(dataset.labels[:, 1]).all()
    assert dataset.labels.dtype == np.float32
    assert dataset.boxes(0) == ()
    assert dataset.boxes(1) == (LabelledBox("Mass", Box(1.5, 2, 3, 4.25)),)
    assert dataset.geometry(4).column_scale == 100 / SIDE
    assert dataset.rejected.to_dict("records") == [
        {"source_uri": "folder/broken.png", "reason": "truncated", "detail": "cut short"}
    ]


def test_a_data_set_replaced_after_it_was_opened_is_not_mixed_with_its_old_pixels(
    write_small: WriteSmall,
) -> None:
    dataset = open_dataset(write_small())
    assert dataset.column("view")[0] == "PA"
    manifest = dataset.path / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="changed after the data set was opened"):
        dataset.column("patient_id")


def test_splits_partition_the_rows(write_small: WriteSmall) -> None:
    dataset = open_dataset(write_small())
    rows = [dataset.rows(split).tolist() for split in Split]
    assert rows == [[0, 1, 6, 7], [2, 3], [4, 5]]


def test_rows_are_found_by_image_id(write_small: WriteSmall) -> None:
    dataset = open_dataset(write_small())
    assert dataset.row_of(["image-5", "image-0"]).tolist() == [5, 0]
    with pytest.raises(MismatchError, match="'image-99'"):
        dataset.row_of(["image-1", "image-99"])


def test_counts_say_what_is_inside(write_small: WriteSmall) -> None:
    counts = open_dataset(write_small()).info.counts
    assert counts == {
        "images": 8,
        "patients": 4,
        "splits": {"train": 4, "validation": 2, "test": 2},
        "patients_by_split": {"train": 2, "validation": 1, "test": 1},
        "rejected": {"truncated": 1},
        "positives": {
            "Mass": {"train": 2, "validation": 1, "test": 1},
            "Nodule": {"train": 0, "validation": 0, "test": 0},
        },
    }


def test_same_input_gives_the_same_bytes_and_another_input_another_digest(
    write_small: WriteSmall,
) -> None:
    first, second, other = write_small("a"), write_small("b"), write_small("c", num_images=7)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    assert open_dataset(first).digest == open_dataset(second).digest
    assert open_dataset(first).digest != open_dataset(other).digest


@pytest.mark.parametrize("name", ["manifest.parquet", "rejected.parquet", "images-00001.npy"])
def test_changed_byte_is_found_and_the_file_named(write_small: WriteSmall, name: str) -> None:
    path = write_small() / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        open_dataset(path.parent)


@pytest.mark.parametrize(
    "name", ["dataset.json", "manifest.parquet", "rejected.parquet", "images-00002.npy"]
)
@pytest.mark.parametrize("verify", [True, False])
def test_missing_file_is_named(write_small: WriteSmall, name: str, verify: bool) -> None:
    folder = write_small()
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        open_dataset(folder, verify=verify)


def test_shard_cut_short_is_found_without_verification(write_small: WriteSmall) -> None:
    path = write_small() / "images-00000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="images-00000"):
        open_dataset(path.parent, verify=False)


def test_document_changed_by_hand_is_refused(write_small: WriteSmall) -> None:
    path = write_small() / "dataset.json"
    path.write_text(path.read_text().replace('"split_seed": ', '"split_seed": 1'))
    with pytest.raises(ArtifactError, match="own digest"):
        open_dataset(path.parent)


@pytest.mark.parametrize(("kind", "version"), [("dataset", 2), ("bundle", 1)])
def test_other_kind_or_version_is_refused(write_small: WriteSmall, kind: str, version: int) -> None:
    path = write_small() / "dataset.json"
    content = json.loads(path.read_text())
    del content["schema"], content["kind"]
    write_document(path, kind, version, content)
    with pytest.raises(ArtifactError, match=f"'{kind}' of schema {version}.* reads 'dataset'"):
        open_dataset(path.parent)


def test_error_while_writing_leaves_what_was_there(write_small: WriteSmall, tmp_path: Path) -> None:
    folder = write_small()
    digest = open_dataset(folder).digest
    blank = np.zeros((SIDE, SIDE), np.uint8)
    with pytest.raises(LabelTableError):
        write(folder, (record_of("a"), blank), (record_of("b", Mass=0.5), blank))
    assert open_dataset(folder).digest == digest
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_second_image_of_the_same_id_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    with pytest.raises(LabelTableError, match="'a' appears twice"):
        write(tmp_path / "d", (record_of(), pixels), (record_of(), pixels))


def test_label_that_is_neither_present_absent_nor_unknown_is_refused(tmp_path: Path) -> None:
    blank = np.zeros((SIDE, SIDE), np.uint8)
    with pytest.raises(LabelTableError, match=r"Mass = -1\.0"):
        write(tmp_path / "d", (record_of(Mass=-1.0), blank))


@pytest.mark.parametrize(
    "pixels", [np.zeros((SIDE, SIDE), np.uint16), np.zeros((SIDE, SIDE + 1), np.uint8)]
)
def test_pixels_of_another_kind_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="uint8 of shape"):
        write(tmp_path / "d", (record_of(), pixels))


def test_labels_and_boxes_of_other_findings_stay_out(tmp_path: Path) -> None:
    record = record_of(Mass=1.0, Hernia=1.0)
    boxes = (LabelledBox("Hernia", Box(0, 0, 1, 1)), LabelledBox("Mass", Box(0, 0, 2, 2)))
    write(tmp_path / "d", (replace(record, boxes=boxes), np.zeros((SIDE, SIDE), np.uint8)))
    dataset = open_dataset(tmp_path / "d")
    assert "Hernia" not in dataset.manifest
    assert dataset.boxes(0) == boxes[1:]


def test_shards_are_ordinary_numpy_files(write_small: WriteSmall) -> None:
    folder = write_small()
    total = sum(len(np.load(path)) for path in sorted(folder.glob("images-*.npy")))
    assert total == 8
    assert isinstance(pd.read_parquet(folder / "manifest.parquet"), pd.DataFrame)
