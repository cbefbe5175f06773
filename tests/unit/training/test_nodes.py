"""Several nodes that train together, as the launchers of a TrainJob on one machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chexradinet.config import (
    Backbone,
    GuidanceConfig,
    GuidanceRecipe,
    NetworkConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)
from chexradinet.config.parameters import TrainingPlacement, TrainingSettings, nested
from chexradinet.errors import ConfigError, TrainingError
from chexradinet.model.bundle import load_bundle
from chexradinet.store import FinishedWork
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from chexradinet.training import nodes
from chexradinet.training.rounds import heatmap, radiomics
from chexradinet.training.train import retrain, train

NETWORK = NetworkConfig(backbone=Backbone.RESNET18_NARROW, map_stride=8)
CONFIG = TrainConfig(epochs=2, batch_size=10, learning_rate=1e-3, num_threads=1)
PLACE = TrainingPlacement(num_nodes=2, accelerator_type="", worker_image="worker")


class OneMachine:
    """Starts a TrainJob's command as Trainer does on each node, here on the loopback device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._launchers: list[subprocess.Popen[str]] = []

    def __call__(self) -> "OneMachine":
        """Return itself: the one that `on_nodes` makes."""
        return self

    def ask(self, *_: str) -> None:
        """Have the runtime."""

    def start(self, job: dict[str, Any], _: object) -> None:
        """Start a launcher per node, the first one last."""
        trainer = job["spec"]["trainer"]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for rank in reversed(range(trainer["numNodes"])):
            scratch = self._folder / f"node-{rank}"
            scratch.mkdir(exist_ok=True)
            environment = {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(scratch),
            }
            command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
            self._launchers.append(
                subprocess.Popen(
                    command,
                    env=os.environ | environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )

    def follow(self, _: str) -> None:
        """Wait for all launchers; a node that fails fails the training."""
        said = [one.communicate(timeout=600)[0] for one in self._launchers]
        if any(one.returncode for one in self._launchers):
            raise TrainingError("\n".join(said))

    def delete(self, _: str) -> None:
        """End what still runs."""
        for one in self._launchers:
            one.kill()
            one.wait()
        self._launchers.clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OneMachine:
    """Let trainings on several nodes run on this machine, with a folder as their store."""
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setattr(nodes, "_require_bucket", lambda _: None)
    found = OneMachine(tmp_path)
    monkeypatch.setattr(nodes, "Cluster", found)
    return found


def curve(bundle: Path) -> list[float]:
    return [epoch["loss"] for epoch in load_bundle(bundle).info.history or []]


@pytest.mark.slow
@pytest.mark.trains
def test_two_nodes_train_like_one_process_in_both_kinds_of_round(
    tiny_dataset: Path, tmp_path: Path, machine: OneMachine
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(tiny_dataset, one, NETWORK, CONFIG, reuse=False)
    train(tiny_dataset, two, NETWORK, CONFIG, nodes=PLACE)
    assert len(curve(one)) == 2
    # What is rounded otherwise in the first epoch drifts apart in the second.
    assert curve(two)[0] == pytest.approx(curve(one)[0], rel=2e-4)
    assert curve(two)[1] == pytest.approx(curve(one)[1], rel=2e-3)

    heatmap(one, tiny_dataset, tmp_path / "regions", RegionConfig())
    features = tmp_path / "features"
    radiomics(tiny_dataset, tmp_path / "regions", features, RadiomicsConfig(), num_workers=1)
    config = CONFIG.changed(epochs=1)
    guided = {
        "round_number": 1,
        "guidance": GuidanceConfig(guidance=GuidanceRecipe.SHARPEN_CONTRASTIVE),
        "config": config,
    }
    inputs = (one, tiny_dataset, [features])
    retrain(*inputs, tmp_path / "one-1", **guided, reuse=False)  # type: ignore[arg-type]
    retrain(*inputs, tmp_path / "two-1", **guided, nodes=PLACE)  # type: ignore[arg-type]
    assert curve(tmp_path / "two-1") == pytest.approx(curve(tmp_path / "one-1"), rel=1e-3)
    guiding = load_bundle(tmp_path / "two-1").info.metrics["num_guiding_regions"]
    assert guiding == load_bundle(tmp_path / "one-1").info.metrics["num_guiding_regions"] > 0


@pytest.mark.trains
def test_a_node_without_its_input_ends_all_of_them(
    tiny_dataset: Path, tmp_path: Path, machine: OneMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FinishedWork, "share", lambda *_: None)
    with pytest.raises(TrainingError, match="the dataset that the step shared is not there"):
        train(tiny_dataset, tmp_path / "model", NETWORK, CONFIG, nodes=PLACE)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("uri", ["", "checkpoints", "file:///checkpoints"])
def test_a_place_that_nodes_do_not_share_is_refused(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, uri)
    with pytest.raises(ConfigError, match=r"num_nodes is 2, and CHEXRADINET_CHECKPOINT_URI is"):
        train(tiny_dataset, tmp_path / "model", NETWORK, CONFIG, nodes=PLACE)


def test_outside_of_a_pod_several_nodes_are_refused(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, "s3://bucket/checkpoints")
    monkeypatch.setattr(FinishedWork, "take", lambda *_: False)
    monkeypatch.setattr(nodes, "SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(ConfigError, match="needs a pod on Kubernetes with its account's token"):
        train(tiny_dataset, tmp_path / "model", NETWORK, CONFIG, nodes=PLACE)


def test_a_pretext_on_several_nodes_is_refused() -> None:
    given = {"source": "x", "models_uri": "y", "num_nodes": 2}
    assert nested(TrainingSettings, given).placement.num_nodes == 2
    with pytest.raises(ConfigError, match=r"num_nodes is 2; .* `chexradinet pretrain` first"):
        nested(TrainingSettings, {**given, "pretext": "radiomics"})


def test_accelerators_that_a_pretext_would_leave_idle_are_refused() -> None:
    given = {"source": "x", "models_uri": "y", "pretext": "radiomics"}
    assert nested(TrainingSettings, given | {"accelerator_count": 1}).placement.num_processes == 1
    with pytest.raises(ConfigError, match=r"accelerator_count is 2; it must be at most 1 with a"):
        nested(TrainingSettings, given | {"accelerator_count": 2})


@pytest.mark.parametrize("split", [{"num_nodes": 4}, {"num_nodes": 2, "accumulation": 2}])
def test_a_batch_with_fewer_images_than_processes_is_refused_at_submission(
    split: dict[str, int],
) -> None:
    given = {"source": "x", "models_uri": "y", "accelerator_count": 8, **split}
    assert nested(TrainingSettings, given | {"batch_size": 32}).placement.num_nodes > 1
    with pytest.raises(ConfigError, match=r"batch_size is 31; it must be at least 32: an image"):
        nested(TrainingSettings, given | {"batch_size": 31})


@pytest.mark.parametrize("number", [0, 65])
def test_a_number_of_nodes_out_of_bounds_is_refused(number: int) -> None:
    given = {"source": "x", "models_uri": "y", "num_nodes": number}
    with pytest.raises(ConfigError, match=f"num_nodes is {number}"):
        nested(TrainingSettings, given)


def test_a_node_gets_its_accelerators_and_no_text_that_kubernetes_expands() -> None:
    place = TrainingPlacement(num_nodes=3, accelerator_count=4, worker_image="worker")
    job = nodes.train_job("name", place, {"settings": {"initial_weights": "$(HOME)"}})
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 4)
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "6Gi", "nvidia.com/gpu": "4"}
    # Trainer 2.0 takes one process if there are no requests, whatever the limits.
    assert trainer["resourcesPerNode"]["requests"]["nvidia.com/gpu"] == "4"
    assert "$" not in trainer["args"][0]
