"""The tree's promise, kept by machine: who may import whom, and what runs on a bare GPU host."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


BARE_HOST = ("SimpleITK", "radiomics", "pydicom", "highdicom", "kfp", "minio", "prometheus_client")
STAGES = (
    "training.train", "training.retrain", "training.heatmap", "training.evaluate", "nightly.score",
)  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ([f"chexradinet.{name}" for name in STAGES], BARE_HOST),
        (["pipelines.training", "pipelines.nightly"], ("torch", "radiomics", "minio", "pandas")),
        (["chexradinet.model.bundle_info"], ("torch", "radiomics", "minio", "kfp")),
    ],
    ids=["training and scoring", "compiling", "passing a model on"],
)
def test_modules_load_where_these_packages_are_absent(
    modules: list[str], absent: tuple[str, ...]
) -> None:
    script = (
        "import sys, importlib\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]


def test_planning_collecting_and_publishing_start_without_torch() -> None:
    script = (
        "import sys\n"
        "import chexradinet.nightly.run, chexradinet.training.publish\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
