"""The gate: what passes against a champion, what is refused, and the number that is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chexradinet.config import PublishConfig
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.records import Split
from chexradinet.training import publish as publication
from chexradinet.training.publish import Check, Comparison, compare

SETTINGS = PublishConfig(min_cases=2)


@pytest.fixture(scope="module")
def data(tiny_dataset: Path) -> Dataset:
    """Return the tiny data set, whose test split has 12 images."""
    return open_dataset(tiny_dataset)


def measured(
    data: Dataset,
    errors: int = 0,
    aurocs: dict[str, float] | None = None,
    pointing: float | None = 0.8,
    error: float | None = 0.05,
    trained_on: str = "",
) -> Any:  # noqa: ANN401 - private to the gate
    """Return a model that ranks every test image right but the first few."""
    labels = data.labels[data.rows(Split.TEST)]
    logits = np.where(labels == 1, 2.0, -2.0)
    logits[:errors] *= -1
    known = dict.fromkeys(data.info.findings, 0.9)
    return publication._Measured(
        logits=logits,
        auroc={**known, **(aurocs or {})},
        pointing=pointing,
        calibration_error=error,
        training_data_digest=trained_on or data.digest,
    )


def compared(
    monkeypatch: pytest.MonkeyPatch,
    data: Dataset,
    ours: Any,  # noqa: ANN401
    theirs: Any,  # noqa: ANN401
    config: PublishConfig = SETTINGS,
) -> Comparison:
    """Compare two models that are measured so."""
    models = {Path("ours"): ours, Path("theirs"): theirs}
    monkeypatch.setattr(publication, "_measured", lambda path, *_: models[path])
    return compare(Path("ours"), Path("theirs"), data, config)


def check(found: Comparison, measure: str) -> Check:
    """Return the check of a measure."""
    (one,) = [check for check in found.checks if check.measure == measure]
    return one


def test_a_better_model_passes_and_every_measure_is_listed(
    monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> None:
    found = compared(monkeypatch, data, measured(data), measured(data, errors=4))
    assert found.passed
    assert found.reason == found.sentence
    assert found.sentence.startswith("Mean AUROC +0.")
    assert "findings on the test split" in found.sentence
    assert [one.measure for one in found.checks] == [
        "mean AUROC",
        *(f"AUROC of {name}" for name in data.info.findings),
        "share of peaks in a true box",
        "calibration error",
    ]


@pytest.mark.parametrize("errors", [(0, 0), (4, 0)])
def test_a_model_that_is_no_better_is_refused_with_the_difference(
    monkeypatch: pytest.MonkeyPatch, data: Dataset, errors: tuple[int, int]
) -> None:
    ours, theirs = (measured(data, errors=count) for count in errors)
    found = compared(monkeypatch, data, ours, theirs)
    assert not found.passed
    assert found.sentence.startswith("Mean AUROC +0.0000" if not errors[0] else "Mean AUROC -0.")
    assert "rise by more than 0.0000 (min_auroc_gain)" in found.reason


def test_a_gain_that_is_asked_for_must_be_exceeded(
    monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> None:
    pair = measured(data), measured(data, errors=1)
    assert compared(monkeypatch, data, *pair).passed
    strict = PublishConfig(min_cases=2, min_auroc_gain=0.9)
    assert not compared(monkeypatch, data, *pair, strict).passed


def test_a_finding_that_loses_more_than_the_margin_is_refused_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> None:
    rows = data.labels[data.rows(Split.TEST)]
    name = data.info.findings[int((rows == 1).sum(axis=0).argmax())]
    ours, theirs = measured(data, aurocs={name: 0.84}), measured(data, errors=4)
    found = compared(monkeypatch, data, ours, theirs)
    assert check(found, f"AUROC of {name}").passed is False
    assert (
        f"The AUROC of {name} is 0.8400, 0.0600 below the champion's 0.9000; at most 0.0500 is "
        "allowed (max_finding_loss)." in found.reason
    )
    wider = PublishConfig(min_cases=2, max_finding_loss=0.07)
    assert compared(monkeypatch, data, ours, theirs, wider).passed
    rare = PublishConfig(min_cases=1000)
    found = compared(monkeypatch, data, ours, theirs, rare)
    assert found.passed
    assert check(found, f"AUROC of {name}").passed is None


def test_localisation_that_loses_more_than_the_margin_is_refused_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> None:
    theirs = measured(data, errors=4, pointing=0.9)
    found = compared(monkeypatch, data, measured(data, pointing=0.5), theirs)
    assert "is 0.5000, 0.4000 below the champion's 0.9000" in found.reason
    assert "(max_localization_loss)" in found.reason
    assert compared(monkeypatch, data, measured(data, pointing=None), theirs).passed


@pytest.mark.parametrize(
    ("own", "other", "passed"), [(0.1, 0.0, True), (0.11, 0.0, False), (0.3, 0.4, True)]
)
def test_calibration_is_bounded_by_the_setting_or_the_champion(
    monkeypatch: pytest.MonkeyPatch, data: Dataset, own: float, other: float, passed: bool
) -> None:
    theirs = measured(data, errors=4, error=other)
    found = compared(monkeypatch, data, measured(data, error=own), theirs)
    assert found.passed is passed
    assert ("The calibration error is 0.1100; at most 0.1000" in found.reason) is not passed


def test_a_champion_that_may_know_the_patients_is_told(
    monkeypatch: pytest.MonkeyPatch, data: Dataset
) -> None:
    theirs = measured(data, errors=4, trained_on="f" * 64)
    assert "may hold these patients" in compared(monkeypatch, data, measured(data), theirs).reason
    same = compared(monkeypatch, data, measured(data), measured(data, errors=4))
    assert "may hold these patients" not in same.reason
