"""The ingest report."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from chexradinet.dataset import open_dataset
from chexradinet.ingest.output import Thumbnail, write_ingest_report

IMAGE = np.zeros((32, 32), np.uint8)


def test_an_ingest_without_a_reject_says_so(tiny_dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "ingest.html"
    write_ingest_report(path, open_dataset(tiny_dataset).info, {})
    assert "Nothing was rejected." in path.read_text()


def test_counts_reasons_and_doubtful_images_are_shown(tiny_dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "ingest.html"
    counts = {
        "images": 1200,
        "patients": 790,
        "rejected": {"truncated": 3, "not_frontal": 6},
        "splits": {"train": 1000, "validation": 0, "test": 200},
        "patients_by_split": {"train": 700, "validation": 0, "test": 90},
        "positives": {"Mass": {"train": 41, "validation": 0, "test": 0}},
    }
    info = replace(open_dataset(tiny_dataset).info, source="a <b> folder", counts=counts)
    doubtful = [Thumbnail(image=IMAGE, image_id=f"id{n}", reason="inverted") for n in range(30)]
    write_ingest_report(path, info, {"PA": 1100, "": 100}, doubtful)
    text = path.read_text()
    assert "a &lt;b&gt; folder" in text
    for shown in ("1,209", "1,200", "not frontal", "41", "unknown", "6 more are not shown"):
        assert shown in text
    assert "No positive case in the test split: Mass." in text
    assert "No positive case in the train split" not in text
    assert text.index("not frontal") < text.index("truncated")
    assert text.count("<img ") == 24
    assert "http" not in text
