"""The document that every figure comes from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chexradinet.errors import ArtifactError
from chexradinet.evaluation import (
    LOCALIZATION_FIELDS,
    headline_rows,
    metrics_document,
    protocol_text,
    read_metrics,
    round_entry,
    write_metrics,
)

TEST = {"mean_auroc": 0.8, "auroc": {"Mass": 0.8}, "ci95": {}, "ece": np.nan, "by_view": {}}


def _document(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
    rounds = [
        round_entry(
            number=number,
            guidance="none" if number == 0 else "sharpen",
            classification={"mean_auroc": np.float32(0.5), "auroc": {"Mass": 0.5}},
            localization={"iou_0.3": 0.25 * number},
        )
        for number in (0, 1)
    ]
    given: dict[str, Any] = {
        "rounds": rounds,
        "best_round": 1,
        "test": TEST,
        "protocol": "on a phantom",
    }
    return metrics_document(**(given | changed))


def test_a_document_without_rounds_or_with_a_missing_key_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no round"):
        _document(rounds=[])
    with pytest.raises(ArtifactError, match="lacks ece"):
        _document(test={key: value for key, value in TEST.items() if key != "ece"})
    with pytest.raises(ArtifactError, match="best round 5"):
        _document(best_round=5)


def test_what_is_not_finite_is_null_and_every_localisation_key_is_there(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", _document(arms={"control": {"x": np.inf}}))
    text = (tmp_path / "metrics.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = read_metrics(tmp_path / "metrics.json")
    assert found["schema"] == 1
    assert found["test"]["ece"] is None
    assert found["arms"] == {"control": {"x": None}}
    assert set(found["rounds"][0]["localization"]) == set(LOCALIZATION_FIELDS)
    assert found["rounds"][1]["localization"]["iou_0.3"] == 0.25
    assert found["protocol"]["test"] == "on a phantom"


def test_another_schema_version_is_refused_naming_both(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, _document())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(ArtifactError, match=r"schema 2.*schema 1"):
        read_metrics(path)


def test_a_document_that_lost_a_key_on_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, _document())
    document = json.loads(path.read_text())
    del document["rounds"][0]["localization"]["swapped_iou_0.3"]
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"lacks swapped_iou_0\.3"):
        read_metrics(path)


def test_the_headline_marks_the_chosen_round() -> None:
    rows = headline_rows(_document())
    assert [row["best"] for row in rows] == [False, True]
    assert rows[1]["iou_0.3"] == 0.25
    assert rows[1]["swapped_iou_0.3"] is None


def test_the_protocol_line_says_on_what_it_was_measured() -> None:
    line = protocol_text(
        dataset="phantom",
        digest="0123456789abcdef",
        split="test",
        num_images=1200,
        num_patients=1,
        selection="round chosen on validation",
    )
    assert line == (
        "phantom (data 0123456789ab), test split: 1,200 images of 1 patient; "
        "round chosen on validation"
    )
