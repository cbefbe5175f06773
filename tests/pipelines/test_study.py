"""The plan of a study is read from YAML, with all of its faults named."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from chexradinet.artifacts import read_document
from chexradinet.config import Freeze, Pretext
from chexradinet.errors import ConfigError
from chexradinet.phantom import write_phantom
from pipelines import __main__ as commands
from pipelines.run import artifacts_of
from pipelines.study import MAX_PARTS, read_plan

ROOT = Path(__file__).resolve().parents[2]


def test_plan_of_the_documentation_is_possible(tmp_path: Path) -> None:
    text = (ROOT / "docs/pretext.md").read_text(encoding="utf-8")
    found = re.search(r"^    arms:\n(?:    .*\n)+", text, re.MULTILINE)
    assert found is not None
    (tmp_path / "study.yaml").write_text(found.group(0).replace("\n    ", "\n")[4:])
    plan = read_plan(tmp_path / "study.yaml")
    assert plan.arms["radiomics"].pretext is Pretext.RADIOMICS
    assert plan.arms["permuted"].freeze is Freeze.LAYER2
    assert plan.seeds == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("study*.yaml")), ids=str)
def test_plan_of_the_evidence_is_possible(path: Path) -> None:
    plan = read_plan(path)
    assert plan.num_parts(MAX_PARTS) == len(plan.arms) * len(plan.seeds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list", "holds no settings"),
        ("arms: [", "cannot be read as YAML"),
        (yaml.safe_dump({"arms": {"a": {}, "b": {}}}), "comparisons is missing"),
        (
            yaml.safe_dump(
                {"arms": {"a": {"pretext": "magic"}, "b": {}}, "comparisons": [["a", "b"]]}
            ),
            "pretext is 'magic'; it must be one of none, radiomics",
        ),
    ],
)
def test_plan_that_cannot_be_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_plan(tmp_path / "study.yaml")


def test_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "none.yaml")


SMALLEST: dict[str, Any] = {
    "arms": {
        "none": {"rounds": 1, "guidance": {"guidance": "sharpen"}},
        "radiomics": {"pretext": "radiomics", "freeze": "layer2"},
    },
    "comparisons": [["radiomics", "none"]],
    "labels": [24, 0],
    "seeds": [0, 1],
    "resamples": 100,
    "seen_before": "never",
    "network": {"backbone": "resnet18-narrow", "map_stride": 8},
    "pretrain": {"pretext_epochs": 1, "num_threads": 1},
    "training": {"epochs": 1, "num_threads": 1},
    "retrain": {"round_epochs": 1, "num_threads": 1},
}


@pytest.mark.slow
def test_the_smallest_study_runs_here_from_the_compiled_pipeline(
    compiled_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom(tmp_path / "source", 96, 64, seed=1)
    settings = {"source": str(tmp_path / "source"), "data_format": "csv", "image_side": 48}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**settings, "plan": SMALLEST}))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, run = str(compiled_study.parent), tmp_path / "run"
    command = ["run", "study", "--config", str(tmp_path / "run.yaml"), "--folder", folder]
    result = CliRunner().invoke(commands.app, [*command, "--run-folder", str(run)])
    assert result.exit_code == 0, result.output
    (study,) = artifacts_of(run, "study")
    assert f"report    {study / 'report.html'}" in result.output
    document = read_document(study / "study.json", "study", 3)
    assert all(sentence in result.output for sentence in document["sentences"])
    ran = {(row["arm"], row["readout"], row["labels"]) for row in document["rows"]}
    number = document["data"]["training_images"]
    assert ran == {
        (arm, readout, labels)
        for arm in SMALLEST["arms"]
        for readout in ("frozen", "fine-tuned")
        for labels in (24, number)
    }
    for row in document["rows"]:
        assert row["seeds"] == len(row["auroc_by_seed"]) == 2
        assert sum(row["auroc_by_seed"].values()) / 2 == pytest.approx(row["mean_auroc"])
    page = (study / "report.html").read_text()
    assert "What is shown and what is not" in page
    assert page.count("<img src=") == 1
    fixed = [yaml.safe_load(path.read_text()) for path in artifacts_of(run, "study.yaml")]
    assert len(fixed) == 2
    assert fixed[0] == fixed[1]
    assert read_plan(study / "study.yaml").record() == document["plan"]


def test_more_arms_and_seeds_than_a_run_has_room_for_share_parts(tmp_path: Path) -> None:
    plan = read_plan(ROOT / "benchmarks/study.yaml")
    assert plan.num_parts(7) == 7
