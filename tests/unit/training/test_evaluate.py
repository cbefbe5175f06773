"""Evaluation: what is chosen, what is refused, and what the numbers rest on."""

import html
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexradinet.config import (
    EvaluationConfig,
    GuidanceConfig,
    GuidanceRecipe,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)
from chexradinet.dataset import open_dataset
from chexradinet.errors import ArtifactError, MismatchError, SourceError
from chexradinet.evaluation import read_metrics
from chexradinet.evaluation.calibration import fit_calibration
from chexradinet.model import (
    copy_bundle,
    read_bundle_info,
    read_reference_arrays,
    verify_bundle,
)
from chexradinet.model.bundle import load_bundle, read_provenance, replace_info
from chexradinet.model.inference import predict
from chexradinet.records import Split
from chexradinet.reports.evaluation import panel_cases
from chexradinet.training.evaluate import Arms, Evaluation, distinct_rounds, evaluate
from chexradinet.training.train import retrain

QUICK = EvaluationConfig(bootstrap_samples=100, min_positives=2)


def _evaluate(dataset: Path, arms: Arms, folder: Path) -> Evaluation:
    return evaluate(
        dataset,
        arms,
        best=folder / "best",
        target=folder / "evaluation",
        config=QUICK,
        regions=RegionConfig(),
        radiomics=RadiomicsConfig(),
    )


@pytest.fixture(scope="module")
def second_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_dataset: Path
) -> Path:
    """Return a round 1 that was trained on without guidance."""
    target = tmp_path_factory.mktemp("second") / "round-1"
    retrain(
        tiny_model,
        tiny_dataset,
        [],
        target,
        round_number=1,
        guidance=GuidanceConfig(guidance=GuidanceRecipe.NONE),
        config=TrainConfig(epochs=2, learning_rate=2e-3, seed=5, num_threads=1),
    )
    return target


@pytest.fixture(scope="module")
def judged(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    second_model: Path,
    tiny_dataset: Path,
) -> Path:
    """Return a folder with the evaluation of two rounds, and `best` beside it."""
    folder = tmp_path_factory.mktemp("judged")
    skipped = folder / "skipped"
    copy_bundle(second_model, skipped)
    arms = Arms(rounds=[tiny_model, second_model, skipped], control=second_model)
    _evaluate(tiny_dataset, arms, folder)
    return folder


def _with_validation(model: Path, target: Path, mean_auroc: float | None) -> Path:
    """Copy a model, with another validation result."""
    info, _ = read_bundle_info(model)
    validation = {**info.metrics["validation"], "mean_auroc": mean_auroc}
    replace_info(model, target, {}, metrics={**info.metrics, "validation": validation})
    return target


def test_a_skipped_round_is_not_counted_twice(
    tiny_model: Path, second_model: Path, tmp_path: Path
) -> None:
    copy_bundle(second_model, tmp_path / "skipped")
    kept = distinct_rounds([tiny_model, second_model, tmp_path / "skipped"])
    assert kept == [tiny_model, second_model]
    with pytest.raises(ArtifactError, match="no model was given"):
        distinct_rounds([])


def test_metrics_hold_every_round_and_are_of_the_bundle_that_was_written(judged: Path) -> None:
    metrics = read_metrics(judged / "evaluation" / "metrics.json")
    assert [entry["round"] for entry in metrics["rounds"]] == [0, 1]
    assert metrics["bundle_digest"] == verify_bundle(judged / "best")
    assert metrics["arms"]["control"]["difference"]["mean_auroc"]["difference"] == 0
    assert "test split" in metrics["protocol"]["test"]


def test_the_report_says_what_made_the_model_and_that_imagenet_was_off(judged: Path) -> None:
    found = read_metrics(judged / "evaluation" / "metrics.json")["provenance"]
    chosen = read_bundle_info(judged / "best")[0].round
    assert [one["stage"] for one in found["stages"]] == ["train", "retrain"][: chosen + 1]
    assert read_provenance(judged / "best") == found["stages"]
    report = (judged / "evaluation" / "report.html").read_text()
    assert found["evaluate"]["hardware"]["processor"] in html.unescape(report)
    assert found["evaluate"]["code"]["sha256"][:8] in report
    assert "ImageNet was off, as no file was given" in report


def test_the_best_bundle_carries_what_scoring_needs(judged: Path) -> None:
    loaded = load_bundle(judged / "best")
    assert loaded.info.calibration is not None
    assert set(loaded.info.thresholds or {}) == set(loaded.info.findings)
    points = loaded.info.metrics["test"]["operating_points"]
    assert set(points) == set(loaded.info.findings)
    assert all(
        set(point) == {"threshold", "sensitivity", "specificity"} for point in points.values()
    )
    reference = loaded.info.reference or {}
    assert reference["num_images"] == 12
    # Twelve images are too few for an embedding space, and the bundle says so.
    assert reference["ood"]["status"] == "not_defined"
    assert read_reference_arrays(judged / "best") == {}


@pytest.mark.parametrize(
    ("first", "second", "best"), [(0.9, 0.8, 0), (0.8, 0.9, 1), (None, 0.1, 1)]
)
def test_the_round_that_validates_best_is_chosen_not_the_last(
    tiny_model: Path,
    second_model: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    first: float | None,
    second: float,
    best: int,
) -> None:
    rounds = [
        _with_validation(tiny_model, tmp_path / "r0", first),
        _with_validation(second_model, tmp_path / "r1", second),
    ]
    outcome = _evaluate(tiny_dataset, Arms(rounds=rounds), tmp_path)
    assert outcome.best_round == best
    assert read_bundle_info(tmp_path / "best")[0].round == best


def test_a_model_of_another_data_set_is_not_judged_on_this_test_split(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    replace_info(tiny_model, tmp_path / "other", {}, training_data_digest="f" * 64)
    with pytest.raises(MismatchError, match="whose test patients it never saw"):
        _evaluate(tiny_dataset, Arms(rounds=[tmp_path / "other"]), tmp_path)


def test_headline_figures_are_finite_and_the_pooled_curve_rises(judged: Path) -> None:
    metrics = read_metrics(judged / "evaluation" / "metrics.json")
    outcome = Evaluation(best_round=0, bundle_digest="", metrics=metrics)
    assert all(np.isfinite(value) for value in outcome.headline().values())
    false_rate, true_rate, thresholds = outcome.pooled_roc()
    assert np.isfinite([*false_rate, *true_rate, *thresholds]).all()
    assert (np.diff(false_rate) >= 0).all()


def test_the_panel_shows_each_finding_before_its_failures() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32)
    probabilities = np.array([[0.2, 0.1], [0.9, 0.3], [0.5, 0.8]])
    assert panel_cases(labels, probabilities) == [(1, 0), (2, 1), (0, 0), (1, 1)]


def test_a_data_set_without_test_images_cannot_be_evaluated(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(tiny_dataset)
    monkeypatch.setattr(type(data), "rows", lambda _self, _split: np.zeros(0, dtype=np.int64))
    with pytest.raises(SourceError, match="no test image"):
        _evaluate(tiny_dataset, Arms(rounds=[tiny_model]), tmp_path)


def test_calibration_and_reference_are_those_of_the_validation_split_alone(
    tiny_dataset: Path, tiny_model: Path, tmp_path: Path
) -> None:
    _evaluate(tiny_dataset, Arms(rounds=[tiny_model]), tmp_path)
    best, data = load_bundle(tmp_path / "best"), open_dataset(tiny_dataset)
    fitted = {}
    for split in (Split.VALIDATION, Split.TEST):
        rows = data.rows(split)
        logits = predict(best.network, data.images, rows, maps=False).logits
        fitted[split] = fit_calibration(data.labels[rows], logits, data.info.findings, QUICK)
    kept = best.info.calibration
    assert kept is not None
    assert kept["findings"] == fitted[Split.VALIDATION].as_dict()["findings"]
    assert kept["findings"] != fitted[Split.TEST].as_dict()["findings"]
    assert best.info.reference is not None
    patients = data.manifest["patient_id"].to_numpy()[data.rows(Split.VALIDATION)]
    assert best.info.reference["num_patients"] == len(set(patients))


def test_reference_has_what_is_known_and_nothing_else(
    tiny_dataset: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(tiny_dataset)
    _evaluate(tiny_dataset, Arms(rounds=[tiny_model]), tmp_path / "png")
    plain = read_bundle_info(tmp_path / "png" / "best")[0].reference
    assert plain is not None
    assert "metadata:manufacturer" not in plain["distributions"]
    headers = pd.DataFrame({"manufacturer": ["Siemens"] * len(data)})
    monkeypatch.setattr("chexradinet.training.evaluate.read_headers", lambda _: headers)
    _evaluate(tiny_dataset, Arms(rounds=[tiny_model]), tmp_path / "dicom")
    told = read_bundle_info(tmp_path / "dicom" / "best")[0].reference
    assert told is not None
    assert set(told["distributions"]) - set(plain["distributions"]) == {"metadata:manufacturer"}
    assert told["distributions"]["metadata:manufacturer"]["categories"] == ["Siemens"]
