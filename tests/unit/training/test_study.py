"""A study: paired cells, a plan that is fixed, and sentences that follow from intervals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chexradinet.config import (
    Backbone,
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    Pretext,
    PretrainConfig,
    RetrainConfig,
    TrainConfig,
)
from chexradinet.config.training import Arm, StudyPlan
from chexradinet.dataset import open_dataset
from chexradinet.errors import ArtifactError, ConfigError, MismatchError
from chexradinet.evaluation import LOCALIZATION_KEYS
from chexradinet.evaluation.localization import boxed_cases
from chexradinet.model.bundle import environment
from chexradinet.records import Split
from chexradinet.training import study as study_module
from chexradinet.training.study import (
    READOUTS,
    Cell,
    Outcome,
    cells_of,
    labelled_rows,
    outcomes_of,
    run_part,
    run_study,
)
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
    names = {"readout": "frozen", "labels": 50, "arm": "a", "against": "b", "value": 0.02}
    return {**names, "measure": "mean_auroc", "seeds95": seeds, "patients95": patients}


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
    num_cases = len(boxed_cases(data, data.rows(Split.TEST)).rows)
    outcomes = []
    for seed in PLAN.seeds:
        noise = generator.normal(size=labels.shape).astype(np.float32)
        for arm, strength in (("none", 0.0), ("radiomics", 50.0)):
            scores = (noise + strength * np.nan_to_num(labels)).astype(np.float32)
            outcomes.append(
                Outcome(
                    cell=Cell(arm, 24, seed),
                    scores=dict.fromkeys(READOUTS, scores),
                    probabilities=dict.fromkeys(READOUTS, np.full_like(scores, np.nan)),
                    hits=np.full((num_cases, len(LOCALIZATION_KEYS)), bool(strength)),
                    rounds=[{"validation": None, "test": None}],
                    chosen=0,
                    environment={"code": {"version": f"1.{seed}"}},
                )
            )
    document = study_document(data, PLAN, outcomes)
    *trained, report = document["provenance"]
    assert [(one["stage"], one["code"]) for one in trained] == [
        ("2 cells", {"version": "1.0"}),
        ("2 cells", {"version": "1.1"}),
    ]
    assert report["code"] == environment()["code"]
    (row,) = [r for r in document["rows"] if r["arm"] == "radiomics" and r["readout"] == "frozen"]
    assert row["mean_auroc"] == 1
    assert row["iou_0.3"] is None  # a frozen encoder with a ridge regression has no map
    assert row["ece"] is None
    assert all(one["higher_in"] == 2 for one in document["differences"])
    (located,) = [one for one in document["differences"] if one["measure"] == "iou_0.3"]
    assert (located["value"], located["patients95"]) == (1, [1, 1])
    assert (
        "ImageNet as a start was off: no arm gives a file as `initial_weights`."
        in (document["notes"])
    )


@pytest.mark.trains
def test_a_study_ends_in_a_report_and_runs_no_cell_twice(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    data, folder = open_dataset(tiny_dataset), tmp_path / "study"
    outcomes = run_study(data, PLAN, folder)
    assert len(outcomes) == 4
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    again = run_study(data, PLAN, folder)
    assert written == {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    for one, other in zip(outcomes, again, strict=True):
        np.testing.assert_array_equal(one.scores["frozen"], other.scores["frozen"])
        assert other.environment == environment()
    write_study(folder, study_document(data, PLAN, again))
    report = (folder / "report.html").read_text()
    assert "radiomics against none" in report
    assert "Variants that were tried before" in report
    with pytest.raises(MismatchError, match="another plan"):
        run_study(data, PLAN.changed(margin=0.02), folder)


def test_more_labels_than_training_images_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels is 500; it must be at most 48"):
        run_study(open_dataset(tiny_dataset), PLAN.changed(labels=[500]), tmp_path)


GUIDED = PLAN.changed(
    arms={
        "sharpen": Arm(rounds=3, guidance=GuidanceConfig(guidance=GuidanceRecipe.SHARPEN)),
        "contrast": Arm(
            rounds=1, guidance=GuidanceConfig(guidance=GuidanceRecipe.CONTRASTIVE), stops=False
        ),
    },
    comparisons=[("contrast", "sharpen")],
    retrain=RetrainConfig(round_epochs=1, batch_size=16),
)


@pytest.mark.trains
def test_guided_rounds_are_arms_and_end_when_validation_falls(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(tiny_dataset)
    ranked = iter([0.6, 0.58, 0.56])
    monkeypatch.setattr(
        study_module, "_ranked", lambda *_: {"validation": next(ranked), "test": None}
    )
    (stopped,) = run_study(data, GUIDED, tmp_path, cells=[Cell("sharpen", 24, 0)])
    assert [one["validation"] for one in stopped.rounds] == [0.6, 0.58, 0.56]
    assert stopped.chosen == 0
    ranked = iter([0.7, 0.6])
    (whole,) = run_study(data, GUIDED, tmp_path, cells=[Cell("contrast", 24, 0)])
    assert (len(whole.rounds), whole.chosen) == (2, 1)
    document = study_document(data, GUIDED, outcomes_of(data, GUIDED, [tmp_path]))
    (row,) = [r for r in document["rows"] if r["arm"] == "contrast" and r["readout"] != "frozen"]
    assert row["rounds"] == 1
    assert 0 <= row["pointing"] <= 1


@pytest.mark.trains
def test_parts_that_ran_apart_are_one_study(tiny_dataset: Path, tmp_path: Path) -> None:
    data = open_dataset(tiny_dataset)
    first, second = cells_of(data, GUIDED)[:2]
    for cell in (first, second):
        run_study(data, GUIDED, tmp_path / cell.name, cells=[cell])
    found = outcomes_of(data, GUIDED, [tmp_path / first.name, tmp_path / second.name])
    assert [one.cell for one in found] == [first, second]
    document = study_document(data, GUIDED, found)
    # Both arms have the same encoder before they are fine-tuned.
    assert {one["readout"] for one in document["differences"]} == {"fine-tuned"}
    assert [row["arm"] for row in document["rows"]] == ["sharpen", "sharpen", "contrast"]
    with pytest.raises(MismatchError, match="another plan"):
        outcomes_of(data, PLAN, [tmp_path / first.name])
    with (tmp_path / first.name / f"{first.name}.npz").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match="was changed"):
        outcomes_of(data, GUIDED, [tmp_path / first.name])


def test_each_cell_is_in_exactly_one_part_and_an_arm_keeps_its_encoder(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan = open_dataset(tiny_dataset), PLAN.changed(labels=[12, 24])
    ran: list[list[Cell]] = []

    def noted(_: Any, __: Any, folder: Path, cells: list[Cell]) -> None:  # noqa: ANN401
        ran.append(cells)
        (folder / "encoder-radiomics-0").mkdir(parents=True)
        (folder / "plan.json").write_text("{}")

    monkeypatch.setattr("chexradinet.training.study.run_study", noted)
    for part in range(3):
        run_part(data, plan, part, 3, tmp_path / str(part))
    assert sorted((cell for cells in ran for cell in cells), key=str) == sorted(
        cells_of(data, plan), key=str
    )
    for number in plan.labels:
        pairs = [{(c.arm, c.seed) for c in cells if c.labels == number} for cells in ran]
        assert pairs == [{(c.arm, c.seed) for c in cells} for cells in ran]
    # What is kept of a part is its cells, not the encoders that they started from.
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["plan.json"]
