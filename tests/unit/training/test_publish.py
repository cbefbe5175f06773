"""Publication: what the gate lets pass, what becomes champion, and what is kept of the decision."""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chexradinet.artifacts import read_document
from chexradinet.config import EvaluationConfig, PublishConfig, RadiomicsConfig, RegionConfig
from chexradinet.dataset import Dataset, open_dataset
from chexradinet.errors import ArtifactError, StoreNotFoundError
from chexradinet.model import (
    WEIGHTS_FILE,
    read_bundle_info,
    read_reference_arrays,
    verify_bundle,
    write_info,
)
from chexradinet.model.bundle import replace_info
from chexradinet.records import Split
from chexradinet.registry import POINTER, fetch_champion, move_pointer, read_pointer
from chexradinet.training import publish as publication
from chexradinet.training.evaluate import Arms, evaluate
from chexradinet.training.publish import Check, Comparison, Publication, compare, publish


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_dataset: Path) -> Path:
    """Return a folder with an evaluation, and the calibrated bundle `best` beside it."""
    folder = tmp_path_factory.mktemp("judged")
    evaluate(
        tiny_dataset,
        Arms(rounds=[tiny_model]),
        best=folder / "best",
        target=folder / "evaluation",
        config=EvaluationConfig(bootstrap_samples=100, min_positives=2),
        regions=RegionConfig(),
        radiomics=RadiomicsConfig(),
    )
    return folder


def _publish(
    judged: Path,
    dataset: Path,
    models: Path,
    **changes: Any,  # noqa: ANN401
) -> Publication:
    settings = PublishConfig(**{"allow_missing_thresholds": True, **changes})
    return publish(judged / "best", judged / "evaluation", dataset, str(models), settings)


def test_the_first_model_is_published_and_a_second_time_nothing_changes(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreNotFoundError, match="no model was published"):
        fetch_champion(str(tmp_path / "models"), tmp_path / "none")
    first = _publish(judged, tiny_dataset, tmp_path / "models")
    pointer = (tmp_path / "models" / POINTER).read_bytes()
    again = _publish(judged, tiny_dataset, tmp_path / "models")
    assert first.published
    assert again.published
    assert (tmp_path / "models" / POINTER).read_bytes() == pointer
    digest = fetch_champion(str(tmp_path / "models"), tmp_path / "fetched")
    assert digest == first.champion_digest == verify_bundle(judged / "best")
    assert (tmp_path / "models" / "evaluations" / digest / "report.html").exists()


def test_a_model_that_does_not_beat_the_champion_is_not_published(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    champion = _publish(judged, tiny_dataset, tmp_path / "models")
    # The same weights under another description: equal on every image, so no better.
    twin = tmp_path / "twin"
    changed(judged, twin, round=7)
    outcome = _publish(twin, tiny_dataset, tmp_path / "models")
    assert not outcome.published
    assert outcome.champion_digest == champion.champion_digest
    assert "+0.0000" in outcome.reason
    assert read_pointer(str(tmp_path / "models"))[0]["digest"] == champion.champion_digest


def test_a_champion_with_other_findings_is_replaced_only_when_asked(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    digest = changed(judged, other, preprocessing_digest="0" * 64)
    _publish(other, tiny_dataset, tmp_path / "models")
    refused = _publish(judged, tiny_dataset, tmp_path / "models")
    assert not refused.published
    assert "replace_incomparable" in refused.reason
    assert _publish(judged, tiny_dataset, tmp_path / "models", replace_incomparable=True).published
    history = read_pointer(str(tmp_path / "models"))[0]["history"]
    assert [entry["digest"] for entry in history] == [digest, verify_bundle(judged / "best")]


def test_a_model_without_calibration_or_of_another_evaluation_is_refused(
    judged: Path, tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="publish what `evaluate` wrote"):
        publish(tiny_model, judged / "evaluation", tiny_dataset, str(tmp_path / "models"))
    assert not (tmp_path / "models" / POINTER).exists()


def test_a_champion_with_a_changed_byte_stops_publication(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    champion = _publish(judged, tiny_dataset, tmp_path / "models").champion_digest
    card = tmp_path / "models" / champion / "model-card.md"
    card.write_text(card.read_text() + " ")
    with pytest.raises(Exception, match=r"changed|checksum|SHA-256"):
        fetch_champion(str(tmp_path / "models"), tmp_path / "fetched")


def changed(judged: Path, folder: Path, **changes: Any) -> str:  # noqa: ANN401
    """Write the same model with other info and its evaluation; return its digest."""
    shutil.copytree(judged / "evaluation", folder / "evaluation")
    arrays = read_reference_arrays(judged / "best")
    digest = replace_info(judged / "best", folder / "best", arrays, **changes)
    _rewrite_digest(folder / "evaluation" / "metrics.json", digest)
    return digest


def _rewrite_digest(path: Path, digest: str) -> None:
    document = json.loads(path.read_text())
    document["bundle_digest"] = digest
    path.write_text(json.dumps(document))


def test_the_decision_and_its_figures_are_kept_and_the_card_shows_them(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    older, models = tmp_path / "older", tmp_path / "models"
    before = changed(judged, older, round=7)
    _publish(older, tiny_dataset, models)
    outcome = _publish(judged, tiny_dataset, models, min_auroc_gain=-0.5)
    assert outcome.published
    kept = models / "evaluations" / outcome.champion_digest
    document = read_document(kept / "decision.json", "publication", 1)
    assert document["candidate_digest"] == outcome.champion_digest != before
    assert document["reason"] == outcome.reason
    assert document["checks"][0]["measure"] == "mean AUROC"
    card = (kept / "model-card.md").read_text()
    own = (judged / "best" / "model-card.md").read_text()
    assert card.startswith(own.rstrip())
    assert outcome.as_markdown() in card
    assert "| mean AUROC |" in card
    assert verify_bundle(models / outcome.champion_digest) == outcome.champion_digest


def test_a_model_that_never_flags_is_published_only_when_asked(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    info, _ = read_bundle_info(judged / "best")
    never = tmp_path / "never"
    changed(judged, never, thresholds=dict.fromkeys(info.findings))
    refused = _publish(never, tiny_dataset, tmp_path / "models", allow_missing_thresholds=False)
    assert (refused.published, refused.champion_digest) == (False, "")
    assert "set allow_missing_thresholds" in refused.reason
    assert "Champion: `none`" in refused.as_markdown()
    assert not (tmp_path / "models").exists()
    assert _publish(never, tiny_dataset, tmp_path / "models").published


def test_findings_without_a_threshold_are_named_in_the_reason_and_the_log(
    judged: Path, tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info, _ = read_bundle_info(judged / "best")
    first, *others = info.findings
    some = tmp_path / "some"
    changed(judged, some, thresholds={first: None, **dict.fromkeys(others, 0.5)})
    outcome = _publish(some, tiny_dataset, tmp_path / "models", allow_missing_thresholds=False)
    assert outcome.published
    assert outcome.without_threshold == (first,)
    assert f"never flagged: {first}." in outcome.reason
    assert f"never flagged: {first}" in caplog.text


def test_a_model_that_gives_no_numbers_is_refused(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(judged, broken)
    weights = load_file(broken / "best" / WEIGHTS_FILE)
    name = next(name for name in weights if name.endswith("bias"))
    weights[name][0] = float("nan")
    save_file(weights, broken / "best" / WEIGHTS_FILE)
    info, _ = read_bundle_info(judged / "best")
    card = (judged / "best" / "model-card.md").read_text()
    digest = write_info(broken / "best", info, card)
    _rewrite_digest(broken / "evaluation" / "metrics.json", digest)
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        _publish(broken, tiny_dataset, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    judged: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, models = tmp_path / "twin", tmp_path / "models"
    changed(judged, twin, round=7)
    both_decided = threading.Barrier(2, timeout=120)
    arrived: list[int] = []

    def move(uri: str, pointer: Mapping[str, Any], tag: str, digest: str, reason: str) -> None:
        if len(arrived) < 2:
            arrived.append(1)
            both_decided.wait()
        move_pointer(uri, pointer, tag, digest, reason)

    monkeypatch.setattr(publication, "move_pointer", move)
    outcomes: list[Publication] = []
    threads = [
        threading.Thread(
            target=lambda own=own: outcomes.append(_publish(own, tiny_dataset, models))
        )
        for own in (judged, twin)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (winner,), (loser,) = (
        [one for one in outcomes if one.published is published] for published in (True, False)
    )
    pointer, _ = read_pointer(str(models))
    assert pointer["digest"] == winner.champion_digest == loser.champion_digest
    assert [entry["digest"] for entry in pointer["history"]] == [winner.champion_digest]
    assert "Another model was published meanwhile" in loser.reason
    assert "+0.0000" in loser.reason


def test_the_step_writes_the_decision_as_a_page_and_its_figures_as_a_document(
    judged: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from chexradinet.steps.training import publish as step

    paths = {"best": judged / "best", "evaluation": judged / "evaluation", "dataset": tiny_dataset}
    paths |= {name: tmp_path / name for name in ("decision", "figures")}
    digest = step.python_func(
        models_uri=str(tmp_path / "models"),
        settings=PublishConfig(allow_missing_thresholds=True).struct(),
        **{name: SimpleNamespace(path=str(path)) for name, path in paths.items()},
    )
    document = read_document(tmp_path / "figures", "publication", 1)
    assert document["champion_digest"] == digest == verify_bundle(judged / "best")
    assert (tmp_path / "decision").read_text().startswith("**Published.** First model")


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
