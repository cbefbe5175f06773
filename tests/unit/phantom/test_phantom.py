"""Phantoms: exact boxes, plausible statistics, equal files; DICOM files read back as they were."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexradinet.config import DicomConfig, IngestConfig, QualityConfig
from chexradinet.dataset.labels.generic import read_generic_table
from chexradinet.dataset.quality import gate
from chexradinet.dicom.reader import read_radiograph
from chexradinet.errors import ConfigError
from chexradinet.findings import KNOWN
from chexradinet.phantom import (
    SYNTAXES,
    draw_phantom,
    expose,
    iter_phantom,
    write_phantom,
    write_phantom_inbox,
)
from chexradinet.phantom.chest import PHANTOM_FINDINGS, PLANTERS, box_of, draw_body, draw_chest
from chexradinet.records import Box, Split, View


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 96, 0), "num_images"), ((1, 63, 0), "image_side"), ((1, 4096, 0), "image_side")],
)
def test_absurd_sizes_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(iter_phantom(*arguments))


def test_shortcut_beyond_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="shortcut"):
        list(iter_phantom(1, 96, 0, shortcut=1.5))


def test_mask_without_a_pixel_has_no_box() -> None:
    assert box_of(np.zeros((5, 5), np.float32), 0.5) is None


def test_box_is_tight_and_half_open() -> None:
    mask = np.zeros((9, 9), np.float32)
    mask[2:5, 3:8] = 1
    assert box_of(mask, 0.5, corner=(10, 20)) == Box(12, 23, 15, 28)


def test_image_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = list(iter_phantom(3, 64, 5)), list(iter_phantom(9, 64, 5))
    for one, other in zip([*few, draw_phantom(8, 64, 5, 0.0)], [*many[:3], many[8]], strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.boxes == other.boxes


def test_seed_changes_every_image() -> None:
    pairs = zip(iter_phantom(4, 64, 0), iter_phantom(4, 64, 1), strict=True)
    assert all((one.pixels != other.pixels).mean() > 0.5 for one, other in pairs)


def test_shapes_fit_and_findings_come_in_the_order_of_the_columns() -> None:
    for drawn in iter_phantom(60, 64, 0):
        assert drawn.pixels.shape == (64, 64)
        assert drawn.pixels.dtype == np.uint8
        assert drawn.findings == tuple(sorted(drawn.findings, key=PHANTOM_FINDINGS.index))
        for item in drawn.boxes:
            assert item.box.clipped(64, 64) == item.box


def test_names_are_canonical() -> None:
    assert [KNOWN.canonical(name) for name in PHANTOM_FINDINGS] == list(PHANTOM_FINDINGS)


@pytest.mark.parametrize("finding", sorted(PLANTERS))
def test_finding_changes_its_box_and_hardly_anything_else(finding: str) -> None:
    for seed in range(5):
        body = draw_body(np.random.default_rng(seed))
        chest = draw_chest(np.random.default_rng(seed), body, 128, 1.0)
        before = chest.density + chest.vessels
        box = PLANTERS[finding](np.random.default_rng(seed), chest)
        assert box is not None
        change = np.abs(chest.density + chest.vessels - before)
        inside = np.zeros_like(change, dtype=bool)
        # Soft edges reach beyond the box by less than a tenth of the image.
        reach = 12
        rows = slice(max(0, int(box.top) - reach), int(box.bottom) + reach)
        inside[rows, max(0, int(box.left) - reach) : int(box.right) + reach] = True
        assert change[~inside].sum() < 0.05 * change.sum()
        tight = change[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
        assert tight.sum() > 0.6 * change.sum()


def test_large_heart_has_a_larger_box() -> None:
    def width(factor: float) -> float:
        body = draw_body(np.random.default_rng(0))
        chest = draw_chest(np.random.default_rng(0), body, 128, factor)
        box = box_of(1 - chest.heart_radius, 0.0)
        assert box is not None
        return box.right - box.left

    assert width(1.4) > 1.25 * width(1.0)


def test_findings_differ_in_size_and_place() -> None:
    found: dict[str, list[Box]] = {name: [] for name in PHANTOM_FINDINGS}
    for drawn in iter_phantom(300, 64, 3):
        for item in drawn.boxes:
            found[item.finding].append(item.box)
    area = {name: np.mean([box.area_px for box in boxes]) / 64**2 for name, boxes in found.items()}
    height = {name: np.mean([box.bottom for box in boxes]) / 64 for name, boxes in found.items()}
    assert area["Nodule"] < 0.012 < area["Mass"] < 0.045 < area["Cardiomegaly"]
    assert height["Pneumothorax"] < 0.66 < height["Effusion"]
    assert all(abs(len(boxes) / 300 - 0.2) < 0.08 for boxes in found.values())


def test_effusion_goes_with_heart_failure_and_infection() -> None:
    wanted = ("Effusion", "Cardiomegaly", "Consolidation", "Mass")
    labels = np.array(
        [[name in item.findings for name in wanted] for item in iter_phantom(600, 64, 2)]
    )
    correlation = np.corrcoef(labels.T)[0]
    assert correlation[1] > 0.1
    assert correlation[2] > 0.1
    assert abs(correlation[3]) < 0.1


@pytest.mark.parametrize(("shortcut", "with_it", "without"), [(0.0, 0.4, 0.4), (1.0, 0.9, 0.1)])
def test_shortcut_ties_the_view_to_consolidation(
    shortcut: float, with_it: float, without: float
) -> None:
    drawn = list(iter_phantom(300, 64, 4, shortcut=shortcut))
    sick = np.array(["Consolidation" in item.findings for item in drawn])
    portable = np.array([item.view is View.AP for item in drawn])
    assert abs(portable[sick].mean() - with_it) < 0.15
    assert abs(portable[~sick].mean() - without) < 0.08


def test_marker_shows_only_on_an_ap_view() -> None:
    body = draw_body(np.random.default_rng(0))
    chest = draw_chest(np.random.default_rng(0), body, 80, 1.0)
    corner = (slice(4, 8), slice(70, 76))
    assert (expose(np.random.default_rng(1), chest, View.AP)[corner] == 242).all()
    assert (expose(np.random.default_rng(1), chest, View.PA)[corner] < 200).all()


def test_files_are_a_source_with_patients_and_splits(tmp_path: Path) -> None:
    write_phantom(tmp_path, 36, 64, seed=6)
    table = read_generic_table(tmp_path, IngestConfig())
    phantom = list(iter_phantom(36, 64, 6))
    assert set(table.findings) == set(PHANTOM_FINDINGS)
    patients: dict[str, set[Split | None]] = {}
    for row, drawn in zip(table.rows, phantom, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / row.file)), drawn.pixels)
        assert row.boxes == drawn.boxes
        assert row.age is not None
        patients.setdefault(row.patient_id, set()).add(row.split)
    sizes = [sum(row.patient_id == patient for row in table.rows) for patient in patients]
    assert sizes == [1, 2, 3] * 6
    assert all(len(splits) == 1 for splits in patients.values())
    splits = [row.split for row in table.rows]
    assert (splits.count(Split.TRAIN), splits.count(Split.VALIDATION)) == (24, 6)


def test_table_holds_one_json_list_of_boxes_a_row(tmp_path: Path) -> None:
    write_phantom(tmp_path, 12, 64, seed=0)
    with (tmp_path / "labels.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            names = [item["finding"] for item in json.loads(row["boxes"] or "[]")]
            assert "|".join(names) == (row["findings"] if names else "")
            assert names or row["findings"] == "No Finding"


def test_files_hold_the_phantoms_in_every_syntax_and_pass_the_gate(tmp_path: Path) -> None:
    write_phantom_inbox(tmp_path, 2 * len(SYNTAXES), 128, seed=11)
    drawn = list(iter_phantom(2 * len(SYNTAXES), 128, seed=11))
    for index, path in enumerate(sorted(tmp_path.iterdir())):
        read = read_radiograph(path.read_bytes(), DicomConfig())
        difference = np.abs(read.pixels.astype(int) - drawn[index].pixels)
        assert difference.max() <= 1
        gate(read.header, read.pixels, QualityConfig())


def test_equal_arguments_give_equal_files_and_other_seeds_other_identifiers(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_phantom_inbox(tmp_path / name, 2, 64, seed)
    first, second, third = (
        (tmp_path / name / "000001.dcm").read_bytes() for name in ("one", "two", "three")
    )
    assert first == second
    assert first != third
