"""The tree's promise, kept by machine: who may import whom, and what runs on a bare GPU host."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


BARE_HOST = ("SimpleITK", "radiomics", "pydicom", "highdicom", "kfp", "minio", "prometheus_client")
STAGES = ("training.train", "training.rounds", "training.evaluate", "nightly.score")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ([f"chexradinet.{name}" for name in STAGES], BARE_HOST),
        (["pipelines.training", "pipelines.nightly"], ("torch", "radiomics", "minio", "pandas")),
        (["chexradinet.model"], ("torch", "radiomics", "minio", "kfp")),
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


def test_planning_collecting_and_publishing_start_without_torch_and_scikit_learn() -> None:
    script = (
        "import sys\n"
        "import chexradinet.nightly.run, chexradinet.training.publish\n"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def _imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, also inside functions and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(package: Path) -> dict[str, Path]:
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@pytest.mark.parametrize("package", ["components/chexradinet", "pipelines"])
def test_no_two_files_import_each_other_in_a_circle(package: str) -> None:
    modules = _modules(ROOT / package)
    graph = {}
    for name, path in modules.items():
        wanted = (one if one in modules else one.rpartition(".")[0] for one in _imports(path))
        graph[name] = {one for one in wanted if one in modules and one != name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("components", {"radiomics", "trainer"}),
        ("pipelines", {"kfp"}),
        ("benchmarks", {"kfp", "radiomics", "dev"}),
        ("tests", {"kfp", "radiomics", "dev"}),
    ],
)
def test_what_is_imported_is_declared(folder: str, extras: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"]]
    for extra in extras:
        declared += project["optional-dependencies"][extra]
    names = {re.split(r"[^\w.-]", one)[0].lower().replace("_", "-") for one in declared}
    names.add("kfp")  # without the rest of its extra, as in the image
    ours = {"chexradinet", "pipelines", "tests", "benchmarks", "images"}
    imported = {
        one.partition(".")[0] for path in (ROOT / folder).rglob("*.py") for one in _imports(path)
    }
    homes = packages_distributions()
    missing = {
        one: homes.get(one)
        for one in imported - ours - set(sys.stdlib_module_names)
        if not names & {home.lower().replace("_", "-") for home in homes.get(one, [])}
    }
    assert missing == {}
