"""A training process that is evicted: SIGTERM in the middle of an epoch, and the retry after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chexradinet.artifacts import write_document
from chexradinet.config import IngestConfig, PreprocessingConfig, SourceFormat
from chexradinet.errors import Interrupted
from chexradinet.ingest.ingest import ingest
from chexradinet.model.checkpoint import KIND, POSITION_FILE, SCHEMA
from chexradinet.phantom import write_phantom
from chexradinet.training.processes import safeguard
from tests.stores import listed

pytestmark = pytest.mark.slow

GRACE_PERIOD_S = 30
"""What Kubernetes gives a pod between SIGTERM and SIGKILL unless told otherwise."""

TOLD = """
import sys

def told(done, total, loss):
    print(done, total, flush=True)
    if done == 5:
        sys.stdin.readline()
"""
"""Says which step is done, and waits after the fifth: for the signal that comes then, if any."""

TRAIN = f"""{TOLD}
from pathlib import Path
from chexradinet.config import Backbone, NetworkConfig, TrainConfig
from chexradinet.training.train import train
train(
    Path(sys.argv[1]),
    Path(sys.argv[2]),
    NetworkConfig(backbone=Backbone("resnet18-narrow"), map_stride=8),
    TrainConfig(epochs=3, batch_size=2, num_threads=1),
    progress=told,
)
"""

RETRAIN = f"""{TOLD}
from pathlib import Path
from chexradinet.config import GuidanceConfig, GuidanceRecipe, TrainConfig
from chexradinet.training.train import retrain
retrain(
    Path(sys.argv[3]),
    Path(sys.argv[1]),
    [],
    Path(sys.argv[2]),
    round_number=1,
    guidance=GuidanceConfig(recipe=GuidanceRecipe.SHARPEN),
    config=TrainConfig(epochs=3, batch_size=2, num_threads=1),
    progress=told,
)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small data set."""
    folder = tmp_path_factory.mktemp("data")
    write_phantom(folder / "source", 70, 64, seed=0)
    config = IngestConfig(
        data_format=SourceFormat.CSV, preprocessing=PreprocessingConfig(image_side=64)
    )
    ingest(str(folder / "source"), folder / "dataset", config)
    return folder / "dataset"


@pytest.fixture(scope="module")
def round_0(dataset: Path) -> Path:
    """Return the bundle of an uninterrupted round 0."""
    target = dataset.parent / "round-0"
    with _started(TRAIN, dataset, target) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return target


def _started(program: str, *arguments: Path, state: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["CHEXRADINET_CHECKPOINT_URI"] = "" if state is None else str(state)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _evicted(process: subprocess.Popen[str], number: int) -> tuple[float, str]:
    """Send a signal once step 5 is done; return the seconds until the end, and what was said."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line.split()[0]) == 5:
            break
    process.send_signal(number)
    started = time.monotonic()
    _, error = process.communicate(timeout=2 * GRACE_PERIOD_S)
    return time.monotonic() - started, error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_evicted_training_goes_on_and_ends_with_the_same_weights(
    dataset: Path, round_0: Path, tmp_path: Path, number: signal.Signals
) -> None:
    state, target = tmp_path / "state", tmp_path / "model"
    with _started(TRAIN, dataset, target, state=state) as process:
        seconds, error = _evicted(process, number)
    assert process.returncode != 0
    assert seconds < GRACE_PERIOD_S
    assert not target.exists()
    (kept,) = (path.parent for path in state.glob("*/step-*/position.json"))
    assert f"Interrupted: {number.name} ended the training; {kept.name} is kept in" in error
    kept_step = int(kept.name.removeprefix("step-"))

    with _started(TRAIN, dataset, target, state=state) as process:
        output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    first, total = map(int, output.split("\n")[0].split())
    assert 5 <= kept_step < total // 3, "it was not stopped within the first epoch"
    assert first == kept_step + 1
    weights = [bundle / "weights.safetensors" for bundle in (target, round_0)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    left = [path for path in state.rglob("*.*") if "finished-" not in str(path)]
    assert not left, "the state of a finished training is left behind"


def test_killed_without_notice_loses_an_epoch_at_most(
    dataset: Path, round_0: Path, tmp_path: Path
) -> None:
    state, target = tmp_path / "state", tmp_path / "model"
    with _started(TRAIN, dataset, target, state=state) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.close()
        first, total = map(int, process.stdout.readline().split())
        step = first
        while step <= total // 3 + 2:
            step = int(process.stdout.readline().split()[0])
        process.kill()
    with _started(TRAIN, dataset, target, state=state) as process:
        output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert int(output.split()[0]) == total // 3 + 1
    weights = [bundle / "weights.safetensors" for bundle in (target, round_0)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_evicted_guided_round_goes_on_and_ends_with_the_same_weights(
    dataset: Path, round_0: Path, tmp_path: Path
) -> None:
    whole, target = tmp_path / "whole", tmp_path / "model"
    with _started(RETRAIN, dataset, whole, round_0) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    with _started(RETRAIN, dataset, target, round_0, state=tmp_path / "state") as process:
        seconds, _ = _evicted(process, signal.SIGTERM)
    assert process.returncode != 0
    assert seconds < GRACE_PERIOD_S
    with _started(RETRAIN, dataset, target, round_0, state=tmp_path / "state") as process:
        output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert int(output.split()[0]) > 5
    weights = [bundle / "weights.safetensors" for bundle in (target, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_state_is_kept_in_both_stores_and_removed_at_the_end(folder_uri: str) -> None:
    def evicted() -> None:
        with safeguard("run", folder_uri) as guard:
            for step in (3, 12):
                guard.local.mkdir(exist_ok=True)
                (guard.local / "state.safetensors").write_bytes(b"weights of step %d" % step)
                write_document(guard.local / POSITION_FILE, KIND, SCHEMA, {"step": step})
                guard.keep()
            os.kill(os.getpid(), signal.SIGTERM)
            assert guard.should_stop()
            raise Interrupted("as `fit` does")

    with pytest.raises(Interrupted, match="step-000000012 is kept in"):
        evicted()
    kept = [info.uri.rpartition("/run/")[2] for info in listed(f"{folder_uri}/run/")]
    assert kept == ["step-000000012/position.json", "step-000000012/state.safetensors"]
    with safeguard("run", folder_uri) as guard:
        assert (guard.local / "state.safetensors").read_bytes() == b"weights of step 12"
    assert not listed(f"{folder_uri}/run/")
