"""A run puts nothing into a folder that is not its own, and takes no more than one node."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from chexradinet.errors import ConfigError
from pipelines.demo import run_demo
from pipelines.run import run_locally


def test_run_and_demo_refuse_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "arguments.json").write_text("mine")
    console = Console(file=io.StringIO())
    with pytest.raises(ConfigError, match="holds no earlier run"):
        run_locally(tmp_path / "training.yaml", {}, tmp_path, console)
    with pytest.raises(ConfigError, match="is a file"):
        run_locally(tmp_path / "training.yaml", {}, tmp_path / "arguments.json", console)
    with pytest.raises(ConfigError, match="holds no earlier demo"):
        run_demo(tmp_path, 7, console)
    assert [path.name for path in tmp_path.iterdir()] == ["arguments.json"]
    assert (tmp_path / "arguments.json").read_text() == "mine"


def test_several_nodes_on_this_machine_are_refused(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(ConfigError, match=r"num_nodes is 2; this machine is one node"):
        run_locally(tmp_path / "training.yaml", {"num_nodes": 2}, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()
