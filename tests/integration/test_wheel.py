"""The wheel holds all that the package reads, and its command runs from an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from chexradinet.version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_every_file_beside_the_code_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith(f"chexradinet-{__version__}-")
    for package, place in (("components/chexradinet", "chexradinet"), ("pipelines", "pipelines")):
        tracked = subprocess.run(
            ["git", "ls-files", package], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()
        missing = {name.replace(package, place, 1) for name in tracked} - names
        assert missing == set()


def test_plain_pip_installs_it_and_its_command_runs_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    # The locked dependencies of this environment, without its editable copy of the project: to
    # download them takes minutes.
    packages, locked = next(Path(sys.prefix).glob("lib/python*/site-packages")), tmp_path / "locked"
    locked.mkdir()
    for path in packages.iterdir():
        if "chexradinet" not in path.name:
            (locked / path.name).symlink_to(path)
    linked = next(venv.glob("lib/python*/site-packages")) / "locked.pth"
    linked.write_text(f"import sys; sys.path.insert(1, {str(locked)!r})\n")
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", f"{wheel}[kfp,radiomics]"]
    subprocess.run(install, check=True, env={"PATH": "/usr/bin:/bin"})
    for words in (["--version"], ["params", "training"], ["train", "--help"]):
        done = subprocess.run(
            [str(venv / "bin" / "chexradinet"), *words],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr[-1000:]
    where = subprocess.run(
        [python, "-c", "import chexradinet, pipelines; print(chexradinet.__file__)"],
        cwd=tmp_path, check=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert where.stdout.startswith(str(venv))
