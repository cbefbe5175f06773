import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.dataset.format import open_dataset
from chexradinet.dataset.phantom import write_phantom
from chexradinet.flows.ingest import ingest

PROGRAM = """
import multiprocessing, sys, time
from pathlib import Path
from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.flows.ingest import ingest

def wait_to_be_killed(done, total):
    if done == 20:
        workers = [str(child.pid) for child in multiprocessing.active_children()]
        Path(sys.argv[3] + ".new").write_text(" ".join(workers))
        Path(sys.argv[3] + ".new").rename(sys.argv[3])
        time.sleep(600)

if __name__ == "__main__":
    preprocessing = PreprocessingConfig(image_side=32)
    config = IngestConfig(preprocessing=preprocessing, num_workers=2, shard_size=8)
    ingest(sys.argv[1], Path(sys.argv[2]), config, wait_to_be_killed)
"""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within two minutes")
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_killed_ingest_leaves_no_data_set_and_no_process_and_can_be_repeated(
    tmp_path: Path,
) -> None:
    source, target, marker = tmp_path / "phantom", tmp_path / "dataset", tmp_path / "half-way"
    write_phantom(source, 60, 64, seed=1)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, *map(str, (program, source, target, marker))]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as running:
        wait_until(lambda: marker.exists() or running.poll() is not None, "half of the work")
        workers = [int(number) for number in marker.read_text().split()]
        running.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    wait_until(lambda: not any(is_alive(worker) for worker in workers), "the end of the workers")
    assert not target.exists()
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".dataset.partial-")]
    assert len(left) == 1
    assert list(left[0].glob("images-*.npy"))
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=32))
    ingest(str(source), target, config)
    assert len(open_dataset(target)) == 60
