"""What a run that ended too early leaves, and how the next one continues from it."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.dataset import open_dataset
from chexradinet.errors import SourceError, StoreFullError, TooManyRejectsError
from chexradinet.ingest.decoding import Outcome, decode_in_order
from chexradinet.ingest.ingest import ingest
from chexradinet.phantom import write_phantom
from chexradinet.store.uri import CHECKPOINT_VARIABLE

PROGRAM = """
import multiprocessing, sys, time
from pathlib import Path
from chexradinet.config import IngestConfig, PreprocessingConfig
from chexradinet.ingest.ingest import ingest

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


class CountingDecodes:
    """Notes the files that are decoded from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []

        def noted(
            files: Sequence[str], decode: Callable[[str], Outcome], num_workers: int
        ) -> Iterator[Outcome]:
            self.files += files
            return decode_in_order(files, decode, num_workers)

        monkeypatch.setattr("chexradinet.ingest.ingest.decode_in_order", noted)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def stopping_after(count: int) -> Callable[[int, int], None]:
    """Return a progress function that interrupts the run."""

    def stop(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    write_phantom(tmp_path / "phantom", 30, 64, seed=1)
    return tmp_path / "phantom"


SMALL = IngestConfig(
    preprocessing=PreprocessingConfig(image_side=32),
    ingest_shard_size=8,
    ingest_workers=1,
    reuse=False,  # what is kept of an unfinished ingest is tested here, not of a finished one
)


def interrupted(source: Path, target: Path, done: int, config: IngestConfig = SMALL) -> list[Path]:
    """Ingest until so many files are done; return the folders that are left for the next run."""
    with pytest.raises(KeyboardInterrupt):
        ingest(str(source), target, config, stopping_after(done))
    return list(target.parent.glob(f".{target.name}.resume-*"))


def test_run_without_a_full_shard_leaves_nothing(phantom: Path, tmp_path: Path) -> None:
    assert interrupted(phantom, tmp_path / "dataset", 7) == []


@pytest.mark.parametrize("done", [8, 9, 24, 30])
def test_interrupted_run_decodes_only_what_is_left(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    assert len(interrupted(phantom, tmp_path / "dataset", done)) == 1
    counted = CountingDecodes(monkeypatch)
    resumed = ingest(str(phantom), tmp_path / "dataset", SMALL)
    assert len(counted.files) == 30 - done // 8 * 8
    assert resumed == ingest(str(phantom), tmp_path / "other", SMALL)
    assert files_of(tmp_path / "dataset") == files_of(tmp_path / "other")


def test_damaged_shard_is_decoded_again(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (left,) = interrupted(phantom, tmp_path / "dataset", 24)
    shard = left / "data" / "images-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    counted = CountingDecodes(monkeypatch)
    resumed = ingest(str(phantom), tmp_path / "dataset", SMALL)
    assert len(counted.files) == 30 - 8
    assert resumed == ingest(str(phantom), tmp_path / "other", SMALL)


def test_changed_file_table_or_setting_starts_anew_and_removes_what_was_left(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(phantom, tmp_path / "dataset", 24)
    image = phantom / "images" / "000003.png"
    image.write_bytes((phantom / "images" / "000003.png").read_bytes() + b"\0")
    interrupted(phantom, tmp_path / "dataset", 24)
    table = phantom / "labels.csv"
    table.write_text(table.read_text() + "\n")
    interrupted(phantom, tmp_path / "dataset", 24)
    other = SMALL.changed(split_seed=5)
    assert len(interrupted(phantom, tmp_path / "dataset", 24, other)) == 4
    last = SMALL.changed(split_seed=6)
    counted = CountingDecodes(monkeypatch)
    ingest(str(phantom), tmp_path / "dataset", last)
    assert len(counted.files) == 30
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that finished shards are kept in, as a bucket would be on a cluster."""
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


def replaced_pod(phantom: Path, target: Path, done: int) -> None:
    """Ingest until so many files are done, and lose all that lies on the machine."""
    for folder in interrupted(phantom, target, done):
        shutil.rmtree(folder)


@pytest.mark.parametrize("done", [7, 8, 24, 30])
def test_ingest_whose_pod_was_replaced_decodes_only_what_is_left(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path, done: int
) -> None:
    undisturbed = ingest(str(phantom), tmp_path / "other", SMALL)
    shutil.rmtree(kept)
    replaced_pod(phantom, tmp_path / "dataset", done)
    counted = CountingDecodes(monkeypatch)
    assert ingest(str(phantom), tmp_path / "dataset", SMALL) == undisturbed
    assert len(counted.files) == 30 - done // 8 * 8
    assert files_of(tmp_path / "dataset") == files_of(tmp_path / "other")


def test_unchanged_source_is_not_decoded_twice_and_a_changed_one_is(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    first = ingest(str(phantom), tmp_path / "dataset", SMALL)
    counted = CountingDecodes(monkeypatch)
    assert ingest(str(phantom), tmp_path / "again", SMALL) == first
    assert len(counted.files) == 30 - 24
    image = phantom / "images" / "000003.png"
    image.write_bytes(image.read_bytes() + b"\0")
    ingest(str(phantom), tmp_path / "again", SMALL)
    assert len(counted.files) == 30 - 24 + 30


def test_kept_shard_that_was_changed_is_decoded_again(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    undisturbed = ingest(str(phantom), tmp_path / "other", SMALL)
    (shard,) = (path for path in kept.rglob("images-00001.npy") if "finished-" not in str(path))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    counted = CountingDecodes(monkeypatch)
    assert ingest(str(phantom), tmp_path / "dataset", SMALL) == undisturbed
    assert len(counted.files) == 30 - 8
    assert files_of(tmp_path / "dataset") == files_of(tmp_path / "other")


def test_shards_that_cannot_be_kept_are_a_warning(
    phantom: Path, tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write_text("a file where the folder should be")
    assert ingest(str(phantom), tmp_path / "dataset", SMALL).counts["images"] == 30
    assert caplog.text.count("is not kept in") == 3


def test_more_rejects_allowed_goes_on_where_the_run_failed(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10, 20):
        (phantom / "images" / f"{number:06d}.png").write_bytes(b"no image")
    strict = SMALL.changed(max_reject_fraction=0.1)
    with pytest.raises(TooManyRejectsError, match="not_an_image 10"):
        ingest(str(phantom), tmp_path / "dataset", strict)
    counted = CountingDecodes(monkeypatch)
    info = ingest(str(phantom), tmp_path / "dataset", SMALL)
    assert info.counts["images"] == 20
    assert len(counted.files) == 30 - 26  # the second shard ends with file 26


def test_full_disk_is_told_and_finished_shards_are_kept(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(done: int, total: int) -> None:
        if done == 20:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreFullError, match=r"no space is left for .*shards are kept"):
        ingest(str(phantom), tmp_path / "dataset", SMALL, full)
    counted = CountingDecodes(monkeypatch)
    ingest(str(phantom), tmp_path / "dataset", SMALL)
    assert len(counted.files) == 30 - 16


def test_folders_of_other_targets_are_not_taken_for_stale_ones(
    phantom: Path, tmp_path: Path
) -> None:
    (left,) = interrupted(phantom, tmp_path / "other", 24)
    ingest(str(phantom), tmp_path / "oth*", SMALL)
    assert left.is_dir()


def test_second_process_writing_the_same_data_set_is_refused(phantom: Path, tmp_path: Path) -> None:
    def ingest_again(done: int, total: int) -> None:
        with pytest.raises(SourceError, match="another process is writing"):
            ingest(str(phantom), tmp_path / "dataset", SMALL)

    assert ingest(str(phantom), tmp_path / "dataset", SMALL, ingest_again).counts["images"] == 30


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_killed_ingest_leaves_no_data_set_and_no_process_and_goes_on_after_its_last_full_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".dataset.resume-")]
    assert sorted(path.name for path in left.glob("outcomes-*.json")) == [
        "outcomes-00000.json",
        "outcomes-00001.json",
    ]
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=32), ingest_shard_size=8)
    counted = CountingDecodes(monkeypatch)
    resumed = ingest(str(source), target, config)
    assert counted.files == [f"images/{number:06d}.png" for number in range(16, 60)]
    undisturbed = ingest(str(source), tmp_path / "other", config)
    assert resumed == undisturbed
    assert files_of(target) == files_of(tmp_path / "other")
    assert len(open_dataset(target)) == 60
    assert not left.exists()
