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


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("chexradinet.flows.train", ("SimpleITK", "radiomics", "pydicom", "kfp", "minio")),
        ("chexradinet.flows.retrain", ("SimpleITK", "radiomics", "pydicom", "kfp", "minio")),
        ("chexradinet.flows.heatmap", ("SimpleITK", "radiomics", "pydicom", "kfp", "minio")),
        ("chexradinet.flows.evaluate", ("SimpleITK", "radiomics", "pydicom", "kfp", "minio")),
        ("chexradinet.flows.score", ("SimpleITK", "radiomics", "pydicom", "kfp", "minio")),
        ("pipelines.training", ("torch", "radiomics", "minio", "pandas")),
        ("pipelines.nightly", ("torch", "radiomics", "minio", "pandas")),
    ],
)
def test_a_module_loads_where_these_packages_are_absent(
    module: str, absent: tuple[str, ...]
) -> None:
    script = (
        "import sys, importlib\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        f"importlib.import_module({module!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]
