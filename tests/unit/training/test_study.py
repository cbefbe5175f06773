"""A study: paired cells, a plan that is fixed, and sentences that follow from intervals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chexradinet.config import Backbone, NetworkConfig, Pretext, PretrainConfig, TrainConfig
from chexradinet.config.study import Arm, StudyPlan
from chexradinet.dataset.dataset import open_dataset
from chexradinet.errors import ConfigError, MismatchError
from chexradinet.training.study import READOUTS, Cell, Outcome, labelled_rows, run_study
from chexradinet.training.study_report import seed_interval, sentence, study_document, write_study

PLAN = StudyPlan(
    arms={"none": Arm(), "radiomics": Arm(pretext=Pretext.RADIOMICS)},
    comparisons=[("radiomics", "none")],
    labels=[24],
    seeds=[0, 1],
    resamples=100,
    network=NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8),
    pretrain=PretrainConfig(pretext_epochs=1, batch_size=16, num_threads=1),
    training=TrainConfig(epochs=1, batch_size=16, num_threads=1),
)


def _difference(seeds: list[float] | None, patients: list[float] | None) -> dict[str, Any]:
    names = {"readout": "frozen", "labels": 50, "arm": "a", "against": "b", "mean_auroc": 0.02}
    return {**names, "seeds95": seeds, "patients95": patients}


@pytest.mark.parametrize(
    ("seeds", "patients", "ending"),
    [
        ([0.01, 0.03], [0.005, 0.04], "higher, shown."),
        ([0.01, 0.03], [-0.005, 0.04], "no difference shown."),
        ([-0.03, -0.01], [-0.04, -0.005], "lower, shown."),
        ([-0.004, 0.005], [-0.006, 0.003], "no difference of 0.01 or more, shown."),
        (None, [0.01, 0.03], "an interval is not defined."),
    ],
)
def test_sentence_says_what_both_intervals_show(
    seeds: list[float] | None, patients: list[float] | None, ending: str
) -> None:
    assert sentence(_difference(seeds, patients), 0.01).endswith(ending)


def test_interval_over_seeds_is_students() -> None:
    low, high = seed_interval(np.array([0.01, 0.02, 0.03])) or [0, 0]
    # 4.303 is the 97.5% quantile with two degrees of freedom.
    assert (low, high) == pytest.approx(
        (0.02 - 4.3027 * 0.01 / 3**0.5, 0.02 + 4.3027 * 0.01 / 3**0.5), abs=1e-5
    )
    assert seed_interval(np.array([0.01])) is None


def test_arm_that_is_not_planned_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="comparisons is 'hog'"):
        PLAN.changed(comparisons=[("radiomics", "hog")])


def test_fewer_labels_are_part_of_more(tiny_dataset: Path) -> None:
    data = open_dataset(tiny_dataset)
    few, more = labelled_rows(data, 10, seed=1), labelled_rows(data, 20, seed=1)
    assert set(few) < set(more)
    assert set(few) != set(labelled_rows(data, 10, seed=2))


def test_better_scores_are_shown_to_be_higher(tiny_dataset: Path) -> None:
    data = open_dataset(tiny_dataset)
    labels = data.labels[data.manifest["split"] == "test"]
    generator = np.random.default_rng(0)
    outcomes = []
    for seed in PLAN.seeds:
        noise = generator.normal(size=labels.shape).astype(np.float32)
        for arm, strength in (("none", 0.0), ("radiomics", 50.0)):
            scores = noise + strength * np.nan_to_num(labels)
            made = dict.fromkeys(READOUTS, scores.astype(np.float32))
            outcomes.append(Outcome(Cell(arm, 24, seed), made))
    document = study_document(data, PLAN, outcomes)
    (row,) = [r for r in document["rows"] if r["arm"] == "radiomics" and r["readout"] == "frozen"]
    assert row["mean_auroc"] == 1
    assert all(one["higher_in"] == 2 for one in document["differences"])


def test_a_study_ends_in_a_report_and_runs_no_cell_twice(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    data, folder = open_dataset(tiny_dataset), tmp_path / "study"
    outcomes = run_study(data, PLAN, folder)
    assert len(outcomes) == 4
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    again = run_study(data, PLAN, folder)
    assert written == {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    for one, other in zip(outcomes, again, strict=True):
        np.testing.assert_array_equal(one.scores["frozen"], other.scores["frozen"])
    write_study(folder, study_document(data, PLAN, again))
    report = (folder / "report.html").read_text()
    assert "radiomics against none" in report
    assert "Variants that were tried before" in report
    with pytest.raises(MismatchError, match="another plan"):
        run_study(data, PLAN.changed(margin=0.02), folder)


def test_more_labels_than_training_images_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels is 500; it must be at most 48"):
        run_study(open_dataset(tiny_dataset), PLAN.changed(labels=[500]), tmp_path)
