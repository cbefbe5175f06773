"""The library in three lines, and what it says when a file is no X-ray."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import chexradinet
from chexradinet.errors import ArtifactError, RejectedImageError, SourceError, StoreError
from chexradinet.phantom import write_phantom_inbox
from tests.nightly_world import FINDINGS, World, make_world
from tests.unit.cli.conftest import Done
from tests.unit.cli.conftest import chexradinet as chexradinet_command

command = chexradinet_command
"""The fixture of the command line's tests."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"), num_png=2)
    write_phantom_inbox(made.root / "dicom", 2, 64, seed=3)
    return made


def test_the_champion_says_of_an_x_ray_what_the_night_says(world: World) -> None:
    night = world.with_results("results-for-prediction")
    night.run()
    rows = {(row["object_key"], row["finding"]): row for row in night.table("part-")}
    model = chexradinet.load(world.root / "models", device="cpu")
    assert model.findings == FINDINGS
    for path in sorted(world.inbox.iterdir()):
        said = model.predict(path)
        assert said.model_digest == model.digest
        for one in said.findings:
            row = rows[path.name, one.finding]
            assert one.probability == pytest.approx(float(row["probability"]), abs=1e-6)
            assert str(one.flagged) == row["flagged"].capitalize()
            if one.region is not None:
                assert one.region.top == pytest.approx(float(row["region_top_px"]))


def test_a_bundle_is_opened_as_the_folder_of_models_is(world: World) -> None:
    champion = json.loads((world.root / "models" / "champion.json").read_text())["digest"]
    assert chexradinet.load(world.root / "models" / champion).digest == champion


def test_an_address_without_a_model_is_a_message(tmp_path: Path) -> None:
    with pytest.raises((StoreError, ArtifactError), match="no model was published"):
        chexradinet.load(tmp_path)


def test_what_is_not_an_x_ray_is_rejected_with_a_reason(world: World, tmp_path: Path) -> None:
    model = chexradinet.load(world.root / "models", device="cpu")
    (tmp_path / "note.txt").write_text("not an image")
    with pytest.raises(RejectedImageError):
        model.predict(tmp_path / "note.txt")
    with pytest.raises(SourceError, match=r"absent\.png cannot be read"):
        model.predict(tmp_path / "absent.png")


def test_heatmap_is_a_picture_and_an_unknown_finding_is_named(world: World, tmp_path: Path) -> None:
    model = chexradinet.load(world.root / "models", device="cpu")
    said = model.predict(next(world.inbox.iterdir()).read_bytes())
    said.save_heatmap("Mass", tmp_path / "mass.png")
    picture = cv2.imread(str(tmp_path / "mass.png"))
    assert picture is not None
    assert np.array_equal(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), said.heatmap("Mass"))
    with pytest.raises(SourceError, match="does not know 'Hernia'"):
        said.heatmap("Hernia")


def test_the_command_prints_a_line_for_each_file_and_exits_with_4_if_one_is_rejected(
    world: World, tmp_path: Path, command: Callable[..., Done]
) -> None:
    files = sorted(world.inbox.iterdir())
    (tmp_path / "note.txt").write_text("not an image")
    words = ("predict", "--model", world.root / "models", "--device", "cpu")
    done = command(*words, *files, "--heatmaps", tmp_path / "pictures")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in files]
    flagged = sum(one["flagged"] is True for line in lines for one in line["findings"])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == flagged
    done = command(*words, tmp_path / "note.txt", files[0])
    assert done.code == 4
    assert json.loads(done.out.splitlines()[0])["rejected"]
    assert "findings" in json.loads(done.out.splitlines()[1])


def test_importing_the_package_loads_nothing_slow() -> None:
    script = (
        "import sys, chexradinet\n"
        "sys.exit(', '.join({'torch', 'numpy', 'pandas'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_notebook_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Path(__file__).resolve().parents[2] / "docs" / "predict.ipynb"
    (tmp_path / "models").symlink_to(world.root / "models")
    (tmp_path / "chest.png").write_bytes(next(world.inbox.iterdir()).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102 - a file of this repository
    assert names["highest"].finding in FINDINGS  # type: ignore[attr-defined]
