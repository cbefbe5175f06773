"""The compiled YAML runs on this machine, and rounds open and close as they should."""

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kfp.local import subprocess_task_handler
from rich.console import Console

from chexradinet.evaluation import read_metrics
from chexradinet.model import read_bundle_info
from chexradinet.phantom import write_phantom
from pipelines.compile import compile_training
from pipelines.local_runner import run_stage
from pipelines.parameters import load_compiled, parse_settings
from pipelines.run import LocalRunError, artifacts_of, run_locally

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "image_side=48",
    "backbone=resnet18-narrow",
    "map_stride=16",
    "epochs=1",
    "round_epochs=1",
    "num_shards=2",
    "accelerator_count=0",
    "bootstrap_samples=100",
    "allow_missing_thresholds=true",
    "max_reject_fraction=0.1",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """What a local run left."""

    folder: Path
    outputs: Mapping[str, Any]

    def rounds_of(self, name: str) -> list[int]:
        """Return the rounds of the models that a kind of artifact holds, sorted."""
        paths = artifacts_of(self.folder, name)
        return sorted(read_bundle_info(path)[0].round for path in paths)

    @property
    def metrics(self) -> dict[str, Any]:
        """Return the run's metrics.json."""
        return read_metrics(artifacts_of(self.folder, "evaluation")[-1] / "metrics.json")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom X-rays")
    write_phantom(folder, 96, 64, seed=1)
    return folder


def _run(compiled: Path, source: Path, folder: Path, *settings: str) -> Run:
    words = [f"source={source}", f"models_uri={folder / 'models'}", "data_format=csv", *TINY]
    arguments = parse_settings(load_compiled(compiled), [*words, *settings])
    outputs = run_locally(compiled, arguments, folder / "run", Console(quiet=True), ONE_THREAD)
    return Run(folder / "run", outputs)


@pytest.mark.slow
def test_fewer_rounds_than_compiled_leave_the_last_round_closed(
    compiled_training: Path, phantom: Path, tmp_path: Path
) -> None:
    run = _run(compiled_training, phantom, tmp_path, "rounds=1")
    assert [entry["round"] for entry in run.metrics["rounds"]] == [0, 1]
    for name in ("regions", "features"):
        skipped = [path for path in artifacts_of(run.folder, name) if _is_skipped(path)]
        assert len(skipped) == 1
    # Each arm passed its own model on; without the contrast there is nothing to permute.
    assert run.rounds_of("model") == [0, 0, 0, 1, 1, 1, 1]
    assert set(run.metrics["arms"]) == {"control"}


@pytest.mark.slow
def test_all_rounds_and_arms_run_and_the_best_is_published(
    compiled_training: Path, phantom: Path, tmp_path: Path
) -> None:
    settings = ("rounds=2", "min_improvement=-1", "guidance=sharpen+contrastive")
    run = _run(compiled_training, phantom, tmp_path, *settings)
    metrics = run.metrics
    assert [entry["round"] for entry in metrics["rounds"]] == [0, 1, 2]
    assert set(metrics["arms"]) == {"control", "permuted"}
    selections = [entry["validation"]["mean_auroc"] for entry in metrics["rounds"]]
    assert metrics["best_round"] == selections.index(max(selections))
    pointer = json.loads((tmp_path / "models" / "champion.json").read_text())
    assert pointer["digest"] == metrics["bundle_digest"] == next(iter(run.outputs.values()))
    info, digest = read_bundle_info(tmp_path / "models" / pointer["digest"])
    assert digest == pointer["digest"]
    assert info.round == metrics["best_round"]
    assert info.calibration is not None
    arms = metrics["arms"]
    assert arms["control"]["rounds"][0]["guidance"] == "none"
    assert arms["permuted"]["rounds"][0]["guidance"] == "sharpen+contrastive@permuted"


@pytest.mark.slow
def test_a_round_that_does_not_improve_closes_the_next(phantom: Path, tmp_path: Path) -> None:
    compiled = compile_training(tmp_path, max_rounds=2, has_arms=False)
    run = _run(compiled, phantom, tmp_path, "min_improvement=1")
    assert [entry["round"] for entry in run.metrics["rounds"]] == [0, 1]
    assert run.metrics["arms"] == {}
    log = (run.folder / "run.log").read_text()
    assert "Could not resolve" not in log


@pytest.mark.slow
def test_a_run_whose_publication_failed_trains_no_epoch_when_it_is_submitted_again(
    phantom: Path, tmp_path: Path
) -> None:
    compiled = compile_training(tmp_path, max_rounds=1, has_arms=False)
    (tmp_path / "a file").write_text("no place for models")
    words = [f"source={phantom}", "rounds=1", *TINY]

    def run(name: str, models: Path) -> str:
        arguments = parse_settings(load_compiled(compiled), [*words, f"models_uri={models}"])
        try:
            run_locally(compiled, arguments, tmp_path / name, Console(quiet=True), ONE_THREAD)
        finally:
            log = (tmp_path / name / "run.log").read_text()
        return log

    with pytest.raises(LocalRunError):
        run("first", tmp_path / "a file" / "models")
    assert artifacts_of(tmp_path / "first", "evaluation")
    log = run("again", tmp_path / "models")
    for stage in ("ingest", "train", "retrain"):
        assert log.count(f": {stage} was done before") == 1
    assert "epoch 1 of" not in log
    assert (tmp_path / "models" / "champion.json").is_file()


@pytest.mark.slow
def test_ctrl_c_prints_the_command_that_continues_the_run_in_mid_training(
    phantom: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("\n".join(word.replace("=", ": ") for word in TINY))
    given = (f"source={phantom}", "models_uri=models", "rounds=0", "compare_arms=false", "epochs=9")
    command = [str(Path(sys.executable).with_name("chexradinet")), "--json", "run", "training"]
    command += ["--config", "run.yaml", *(word for one in given for word in ("--set", one))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ONE_THREAD}

    def start(words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )

    # A child of a shell's background job would ignore SIGINT, as its parent does.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with start(command) as first:
        shown = next(iter(first.stdout or ()))
        log = tmp_path / shown.split()[-1] / "run.log"
        while not (log.exists() and "epoch 2 of 9" in log.read_text()):
            assert first.poll() is None
            time.sleep(0.1)
        signal.signal(signal.SIGINT, before)
        first.send_signal(signal.SIGINT)
        said = first.communicate()[0]
    assert first.returncode == 130
    assert "interrupted; this continues it:" in said
    again = shlex.split(said.splitlines()[-1])
    assert again == [*command, "--run-folder", str(log.parent.relative_to(tmp_path))]
    with start(again) as second:
        said = second.communicate()[0]
    assert second.returncode == 0, said
    epochs = re.findall(r"epoch (\d) of 9", log.read_text())
    assert epochs == [str(number) for number in range(int(epochs[0]), 10)]
    assert int(epochs[0]) > 2
    assert "training continues from" in log.read_text()
    assert "ingest was done before" in log.read_text()
    ending = re.findall(r"^(report|model|decision) +\S", said, re.MULTILINE)
    assert ending == ["report", "model", "decision"]
    result = json.loads(said.splitlines()[-1])
    assert result["decision"].startswith("published")
    assert Path(tmp_path, result["report"]).is_file()


def test_a_missing_source_fails_the_run_with_its_own_words(
    compiled_training: Path, tmp_path: Path
) -> None:
    with pytest.raises(LocalRunError, match=r"SourceError: .*nowhere"):
        _run(compiled_training, tmp_path / "nowhere", tmp_path)


def test_kfp_starts_stages_by_the_function_that_the_local_runner_replaces() -> None:
    asked, given = (
        list(inspect.signature(one).parameters)
        for one in (subprocess_task_handler.run_local_subprocess, run_stage)
    )
    assert asked == given


def _is_skipped(regions: Path) -> bool:
    return (regions / "skipped.json").exists()
