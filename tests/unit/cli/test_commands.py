"""Every command on a tiny data set: exit code, outputs, and a wrong path."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chexradinet import __version__
from chexradinet.cli import COMMANDS, commands
from chexradinet.model import read_bundle_info
from chexradinet.regions import read_features, read_regions
from tests.nightly_world import make_world
from tests.unit.cli.conftest import Done

Command = Callable[..., Done]
SMALL = ("--backbone", "resnet18-narrow", "--map-stride", "8", "--epochs", "1")


def refused(done: Done, part: str) -> None:
    """Assert that a command ended with a message that has this part, and without a traceback."""
    assert done.code == 1
    assert "error:" in done.err
    assert part in done.err
    assert "Traceback" not in done.err


def test_phantom_writes_x_rays_and_refuses_a_folder_with_other_files(
    chexradinet: Command, tmp_path: Path
) -> None:
    done = chexradinet("phantom", "--out", tmp_path / "p", "--images", 3, "--side", 64)
    assert done.code == 0
    assert done.result["images"] == 3
    assert len(list((tmp_path / "p").rglob("*.png"))) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    refused(chexradinet("phantom", "--out", tmp_path / "other", "--images", 3), "other")


def test_train_writes_a_bundle(chexradinet: Command, tiny_dataset: Path, tmp_path: Path) -> None:
    done = chexradinet("train", "--dataset", tiny_dataset, "--out", tmp_path / "m", *SMALL)
    assert done.code == 0, done.err
    assert 0 <= done.result["validation"]["mean_auroc"] <= 1
    assert read_bundle_info(tmp_path / "m")[0].round == 0
    refused(chexradinet("train", "--dataset", tmp_path / "no", "--out", tmp_path / "n"), "no")


@pytest.fixture
def looked(chexradinet: Command, tiny_dataset: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """Return a folder with the regions and features of the tiny model."""
    at = ("--dataset", tiny_dataset)
    done = chexradinet("heatmap", "--model", tiny_model, *at, "--out", tmp_path / "regions")
    assert done.code == 0, done.err
    done = chexradinet(
        "radiomics", *at, "--regions", tmp_path / "regions", "--out", tmp_path / "features",
        "--num-workers", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.result["rows"] == len(read_features(tmp_path / "features").table)
    return tmp_path


def test_heatmap_and_radiomics_write_tables_and_retrain_reads_them(
    chexradinet: Command, looked: Path, tiny_dataset: Path, tiny_model: Path
) -> None:
    assert len(read_regions(looked / "regions").table) > 0
    words = ("retrain", "--model", tiny_model, "--dataset", tiny_dataset)
    done = chexradinet(
        *words, "--features", looked / "features", "--out", looked / "r1", "--round-epochs", 1
    )
    assert done.code == 0, done.err
    assert read_bundle_info(looked / "r1")[0].round == 1
    refused(chexradinet(*words, "--features", looked / "no", "--out", looked / "r2"), "no")


def test_heatmap_and_radiomics_name_a_wrong_path(
    chexradinet: Command, tiny_dataset: Path, tmp_path: Path
) -> None:
    at = ("--dataset", tiny_dataset, "--out", tmp_path / "out")
    refused(chexradinet("heatmap", "--model", tmp_path / "absent", *at), "absent")
    refused(chexradinet("radiomics", "--regions", tmp_path / "absent", *at), "absent")


def test_evaluate_publish_and_roll_back(
    chexradinet: Command, tiny_dataset: Path, tiny_model: Path, tmp_path: Path
) -> None:
    at = ("--dataset", tiny_dataset)
    done = chexradinet(
        "evaluate", tiny_model, *at, "--best", tmp_path / "best", "--out", tmp_path / "e",
        "--bootstrap-samples", 100,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.result["best_round"] == 0
    assert (tmp_path / "e" / "report.html").is_file()
    done = chexradinet(
        "publish", "--model", tmp_path / "best", "--evaluation", tmp_path / "e", *at,
        "--models-uri", tmp_path / "models", "--allow-missing-thresholds",
    )  # fmt: skip
    assert done.code == 0, done.err
    digest = done.result["champion"]
    assert digest == read_bundle_info(tmp_path / "best")[1]
    done = chexradinet("roll-back", tmp_path / "models", digest[:8])
    assert (done.code, done.result["champion"]) == (0, digest)
    refused(chexradinet("roll-back", tmp_path / "models", "0123"), "0123")
    refused(chexradinet("evaluate", tmp_path / "no", *at, "--best", "b", "--out", "o"), "no")


def test_plan_score_collect_and_nightly(chexradinet: Command, tmp_path: Path) -> None:
    world = make_world(tmp_path, num_png=3)
    at = (
        "--inbox-uri", world.inbox, "--models-uri", tmp_path / "models",
        "--results-uri", world.results_uri,
    )  # fmt: skip
    done = chexradinet("plan", *at, "--settle-s", 0, "--no-check-inversion")
    assert done.code == 0, done.err
    work = ("--work", done.out.splitlines()[0])
    done = chexradinet("score", *at, *work, "--device", "cpu", "--num-decoders", 1)
    assert done.code == 0, done.err
    assert (done.result["scored"], done.result["not_scored"]) == (3, 0)
    done = chexradinet("collect", *at, *work)
    assert done.code == 0, done.err
    assert (done.result["status"], done.result["scored"]) == ("collected", 3)
    world.add_png(3)
    words = ("--settle-s", 0, "--device", "cpu", "--num-decoders", 1, "--no-check-inversion")
    done = chexradinet("nightly", *at, *words)
    assert (done.code, done.result["scored"]) == (0, 1)
    refused(chexradinet("plan", "--inbox-uri", tmp_path / "absent", *at[2:]), "absent")


def test_upload_names_an_address_that_is_not_an_archive(
    chexradinet: Command, tmp_path: Path
) -> None:
    (tmp_path / "result.dcm").write_bytes(b"a result")
    done = chexradinet("upload", "--results-uri", tmp_path, "--archive-uri", "pacs")
    refused(done, "dicomweb://")


def test_export_onnx_writes_one_file_and_names_a_wrong_bundle(
    chexradinet: Command, tiny_model: Path, tmp_path: Path
) -> None:
    done = chexradinet("export-onnx", tiny_model, tmp_path / "model.onnx")
    assert done.code == 0, done.err
    assert (tmp_path / "model.onnx").stat().st_size > 0
    refused(chexradinet("export-onnx", tmp_path / "absent", tmp_path / "n.onnx"), "absent")


def test_buckets_names_a_folder_without_its_files(chexradinet: Command, tmp_path: Path) -> None:
    refused(chexradinet("buckets", tmp_path), "buckets.json")


def test_a_value_out_of_bounds_is_named_with_its_bounds(
    chexradinet: Command, tiny_dataset: Path, tmp_path: Path
) -> None:
    done = chexradinet(
        "train", "--dataset", tiny_dataset, "--out", tmp_path / "m", "--learning-rate", 3
    )
    refused(done, "learning_rate is 3.0; it must be in (0, 1)")


def test_version_and_short_help(chexradinet: Command) -> None:
    assert __version__ in chexradinet("--version").out
    done = chexradinet("train", "-h")
    assert (done.code, "--learning-rate" in done.out) == (0, True)


def test_help_loads_no_library_that_takes_long() -> None:
    script = (
        "import sys\n"
        "from chexradinet.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "slow = {'torch', 'pandas', 'sklearn', 'matplotlib', 'pydicom', 'kfp', 'minio', 'numpy',\n"
        "        'pydantic'}\n"
        "sys.exit(', '.join(slow & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says_itself(name: str) -> None:
    function = getattr(commands, name.replace("-", "_"))
    assert (inspect.getdoc(function) or "").splitlines()[0] == COMMANDS[name]
