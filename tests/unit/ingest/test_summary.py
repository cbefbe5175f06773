"""The ingest report."""

from pathlib import Path

import numpy as np

from chexradinet.ingest.summary import IngestSummary, Thumbnail, write_ingest_report

IMAGE = np.zeros((32, 32), np.uint8)


def test_an_empty_ingest_says_that_nothing_was_rejected(tmp_path: Path) -> None:
    path = tmp_path / "ingest.html"
    write_ingest_report(path, IngestSummary(dataset="none", digest="", num_found=0, num_kept=0))
    assert "Nothing was rejected." in path.read_text()


def test_counts_reasons_and_doubtful_images_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "ingest.html"
    summary = IngestSummary(
        dataset="a <b> folder",
        digest="0123456789abcdef",
        num_found=1210,
        num_kept=1200,
        rejected={"truncated": 3, "not_frontal": 6},
        splits={
            "train": {"images": 1000, "patients": 700},
            "test": {"images": 200, "patients": 90},
        },
        positives={"Mass": {"train": 41}},
        views={"PA": 1100, "": 100},
    )
    doubtful = [Thumbnail(image=IMAGE, image_id=f"id{n}", reason="inverted") for n in range(30)]
    write_ingest_report(path, summary, doubtful)
    text = path.read_text()
    assert "a &lt;b&gt; folder" in text
    for shown in ("1,210", "1,200", "not frontal", "41", "unknown", "6 more are not shown"):
        assert shown in text
    assert text.index("not frontal") < text.index("truncated")
    assert "Unexplained" in text
    assert text.count("<img ") == 24
    assert "http" not in text
