import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.dataset import open_dataset
from chexradinet.dataset.deidentification import coded, deidentification_key
from chexradinet.ingest.ingest import ingest
from chexradinet.records import Box, Split
from tests.ingest_world import KEY_VARIABLE, SECRET


@pytest.fixture
def nih_source(shared_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that lays out real NIH tables and images as downloaded."""

    def lay_out(layout: str) -> Path:
        source = tmp_path / "nih"
        (source / layout).parent.mkdir(parents=True)
        for name in (
            *("Data_Entry_2017_v2020.head2000.csv", "BBox_List_2017.csv"),
            *("train_val_list.txt.gz", "test_list.txt.gz"),
        ):
            shutil.copyfile(shared_data / "nih_csv" / name, source / name)
        (source / layout).symlink_to(shared_data / "radiographs" / "images")
        return source

    return lay_out


def real_labels(shared_data: Path) -> dict[str, dict[str, str]]:
    with (shared_data / "radiographs" / "labels.csv").open(encoding="utf-8") as stream:
        return {Path(row["filename"]).name: row for row in csv.DictReader(stream)}


def boxes_of(row: dict[str, str]) -> list[tuple[str, Box]]:
    return [
        (item["label"], Box(item["y"], item["x"], item["y"] + item["h"], item["x"] + item["w"]))
        for item in json.loads(row["boxes_512px"] or "[]")
    ]


@pytest.mark.parametrize("layout", ["images", "images_001/images"])
def test_real_nih_download_is_ingested(
    nih_source: Callable[[str], Path], shared_data: Path, tmp_path: Path, layout: str
) -> None:
    config = IngestConfig(data_format="nih", max_reject_fraction=1)  # type: ignore[arg-type]
    info = ingest(str(nih_source(layout)), tmp_path / "dataset", config)
    dataset = open_dataset(tmp_path / "dataset")
    labels = real_labels(shared_data)
    assert info.counts["images"] == 21
    assert info.counts["rejected"] == {"missing": 1979, "not_labelled": 234}
    boxed = 0
    for row, name in enumerate(dataset.manifest["image_id"]):
        known = labels[name]
        positive = {f for f in info.findings if dataset.manifest[f][row] == 1}
        assert positive == set(known["finding_labels"].split("|")) - {"No Finding"}
        split = dataset.manifest["split"][row]
        assert (split == "test") == (known["official_nih_split"] == "test")
        assert dataset.manifest["view"][row] == known["view"]
        expected = boxes_of(known)
        assert len(dataset.boxes(row)) == len(expected)
        for found, (finding, box) in zip(dataset.boxes(row), expected, strict=True):
            back = dataset.geometry(row).to_original(found.box)
            assert found.finding == finding
            assert back.intersection_over_union(box) > 0.99
            boxed += 1
    assert boxed == 1


def test_every_real_radiograph_is_ingested_through_the_generic_table(
    shared_data: Path, tmp_path: Path
) -> None:
    source = tmp_path / "radiographs"
    source.mkdir()
    (source / "images").symlink_to(shared_data / "radiographs" / "images")
    labels = real_labels(shared_data)
    with (source / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "patient", "findings", "view", "age", "sex", "split", "boxes"])
        for row in labels.values():
            boxes = [
                {
                    "finding": finding,
                    "top": b.top,
                    "left": b.left,
                    "bottom": b.bottom,
                    "right": b.right,
                }
                for finding, b in boxes_of(row)
            ]
            # COVID-19 is a fact about the patient: no finding of the image is known.
            known = row["finding_labels"].replace("COVID-19", "")
            split = "test" if row["official_nih_split"] == "test" else "train"
            facts = [row["view"], row["age"], row["sex"], split, json.dumps(boxes)]
            writer.writerow([row["filename"], row["patient_id"], known, *facts])
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=64))
    info = ingest(str(source), tmp_path / "dataset", config)
    dataset = open_dataset(tmp_path / "dataset")
    assert info.counts["images"] == 255
    assert info.counts["patients"] == 199
    assert info.counts["rejected"] == {}
    assert info.counts["splits"]["test"] == 10
    assert np.isnan(dataset.labels).all(axis=1).sum() == 48
    positives = Counter({name: sum(c.values()) for name, c in info.counts["positives"].items()})
    assert positives["Pneumonia"] == 50 + 32
    assert positives["Hernia"] == 3
    assert sum(bool(dataset.boxes(row)) for row in range(255)) == 6
    patients = {split: set(dataset.manifest["patient_id"][dataset.rows(split)]) for split in Split}
    assert not patients[Split.TRAIN] & patients[Split.VALIDATION]
    assert len(patients[Split.VALIDATION]) == round(0.1 * (199 - len(patients[Split.TEST])))


def test_dicom_files_named_by_a_table_are_judged_by_their_headers(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    key = deidentification_key()
    source = tmp_path / "dicom"
    source.mkdir()
    folder = shared_data / "radiographs" / "dicom"
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        (source / name).symlink_to(folder / name)
    (source / "zz-again.dcm").symlink_to(folder / "RG1_J2KI.dcm")
    rows = [f"{name},{name},Nodule" for name in [*names, "zz-again.dcm"]]
    (source / "labels.csv").write_text("\n".join(["file,patient,findings", *rows]))
    config = IngestConfig(
        data_format="dicom",  # type: ignore[arg-type]
        preprocessing=PreprocessingConfig(image_side=64),
        max_reject_fraction=1,
    )
    info = ingest(str(source), tmp_path / "dataset", config)
    dataset = open_dataset(tmp_path / "dataset")
    rejected = dict(zip(dataset.rejected["source_uri"], dataset.rejected["reason"], strict=True))
    assert rejected[coded(key, "file", "dx_dog_thorax_not_human.dcm")] == "not_chest"
    # Files come in the order of their names, whatever the order of the rows.
    assert rejected[coded(key, "file", "zz-again.dcm")] == "duplicate"
    assert info.counts["images"] + len(rejected) == 5
    uris = dataset.manifest["source_uri"].tolist()
    row = uris.index(coded(key, "file", "RG1_J2KI.dcm"))
    assert dataset.manifest["view"][row] == "PA"
    assert dataset.geometry(row).original_height == 1955
