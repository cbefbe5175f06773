"""Memory does not grow with the number of files; at scale: `benchmarks.ingest_memory`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ingest_world import KEY_VARIABLE, SECRET, chest, dicom

FEW, MANY = 80, 400
SIDE_PX, MODEL_SIDE_PX = 320, 224
"""A file has 100 KiB, its model pixels 49 KiB: what keeps either of each file is far above what a
row in memory takes."""
ALLOWED_KIB = 32
"""Memory allowed per further file; up to 15 are measured, 65 and more with such a leak."""

PROGRAM = """
import json, re, sys
from multiprocessing import active_children
from pathlib import Path
from chexradinet.config import PreprocessingConfig
from tests.ingest_world import dicom_config
from chexradinet.ingest.ingest import ingest

preprocessing = PreprocessingConfig(image_side=int(sys.argv[3]))
config = dicom_config(shard_size=32, preprocessing=preprocessing)
peaks = {}

def note(process):
    # Not ru_maxrss: it starts with the memory of the process that started this one.
    status = Path(f"/proc/{process}/status").read_text()
    peaks[process] = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

def progress(done, total):
    for worker in active_children() if done == total - 1 else ():
        note(worker.pid)

info = ingest(sys.argv[1], Path(sys.argv[2]), config, progress)
note("self")
assert len(peaks) == 2
print(json.dumps({"images": info.counts["images"], "peak_kib": sum(peaks.values())}))
"""


def write(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}").write_bytes(dicom(number, chest(number, side=SIDE_PX)))
    return folder


def peak_kib(source: Path, target: Path) -> int:
    """Ingest in a process of its own and return the most memory it held."""
    command = [sys.executable, "-c", PROGRAM, str(source), str(target), str(MODEL_SIDE_PX)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", KEY_VARIABLE: SECRET}
    ended = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300)
    told = json.loads(ended.stdout)
    assert told["images"] == len(list(source.iterdir()))
    return int(told["peak_kib"])


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_further_file_takes_a_row_of_memory_and_not_its_bytes_or_pixels(tmp_path: Path) -> None:
    few = peak_kib(write(tmp_path / "few", FEW), tmp_path / "one")
    many = peak_kib(write(tmp_path / "many", MANY), tmp_path / "other")
    assert (many - few) / (MANY - FEW) < ALLOWED_KIB
    assert many < 1.1 * few
