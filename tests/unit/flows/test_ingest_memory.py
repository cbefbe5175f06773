"""Memory does not grow with the number of files; at scale: `benchmarks.ingest_memory`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ingest_world import KEY_VARIABLE, SECRET, write_dicom

PROGRAM = """
import json, resource, sys
from pathlib import Path
from tests.ingest_world import dicom_config
from chexradinet.flows.ingest import ingest

info = ingest(sys.argv[1], Path(sys.argv[2]), dicom_config(shard_size=64))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"images": info.counts["images"], "peak_kib": peak}))
"""


def peak_kib(source: Path, target: Path) -> int:
    """Ingest in a process of its own and return the most memory it held."""
    command = [sys.executable, "-c", PROGRAM, str(source), str(target)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", KEY_VARIABLE: SECRET}
    ended = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300)
    told = json.loads(ended.stdout)
    assert told["images"] == len(list(source.iterdir()))
    return int(told["peak_kib"])


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_four_times_the_files_take_at_most_a_tenth_more_memory(tmp_path: Path) -> None:
    write_dicom(tmp_path / "few", 100)
    write_dicom(tmp_path / "many", 400)
    few = peak_kib(tmp_path / "few", tmp_path / "one")
    many = peak_kib(tmp_path / "many", tmp_path / "other")
    assert many < 1.1 * few
