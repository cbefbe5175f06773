"""The plan of a study is read from YAML, with all of its faults named."""

import re
from pathlib import Path

import pytest
import yaml

from chexradinet.config import Freeze, Pretext
from chexradinet.errors import ConfigError
from pipelines.study import read_plan

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


def test_plan_of_the_evidence_is_possible() -> None:
    assert read_plan(ROOT / "benchmarks/study.yaml").labels


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
