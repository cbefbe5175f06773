"""Limits of a container count, not the node's processors and memory."""

import os
from pathlib import Path

import pytest

from chexradinet import parallel

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in place of /sys/fs/cgroup, on a node of 64 processors and 256 GiB."""
    monkeypatch.setattr(parallel, "_MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(parallel, "_CONTROL_GROUPS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    pages = {"SC_PHYS_PAGES": 256 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_machine_is_the_limit(groups: Path) -> None:
    assert parallel.available_processors() == 64
    assert parallel.available_memory_bytes() == 256 * GIB
    assert parallel.workers_for(GIB, GIB) == 64
    write(groups / "self", "garbage\n0::/\n")
    write(groups / "cgroup" / "cpu.max", "max 100000\n")
    write(groups / "cgroup" / "memory.max", "max\n")
    assert parallel.workers_for(GIB, GIB) == 64


def test_pod_with_version_2_is_held_to_its_memory_and_quota(groups: Path) -> None:
    write(groups / "self", "0::/\n")
    write(groups / "cgroup" / "memory.max", f"{8 * GIB}\n")
    assert parallel.workers_for(768 << 20, GIB) == 9
    write(groups / "cgroup" / "cpu.max", "250000 100000\n")
    assert parallel.available_processors() == 3
    assert parallel.workers_for(768 << 20, GIB) == 3
    write(groups / "cgroup" / "cpu.max", "10000 100000\n")
    assert parallel.available_processors() == 1


def test_limit_of_a_group_above_counts(groups: Path) -> None:
    write(groups / "self", "0::/a/b\n")
    write(groups / "cgroup" / "a" / "memory.max", f"{2 * GIB}\n")
    write(groups / "cgroup" / "a" / "b" / "memory.max", "max\n")
    assert parallel.available_memory_bytes() == 2 * GIB


def test_pod_with_version_1_is_held_to_its_memory_and_quota(groups: Path) -> None:
    write(groups / "self", "4:memory:/kubepods/pod1\n3:cpu,cpuacct:/kubepods/pod1\n")
    write(groups / "cgroup" / "memory" / "memory.limit_in_bytes", f"{4 * GIB}\n")
    write(groups / "cgroup" / "cpu,cpuacct" / "cpu.cfs_quota_us", "200000\n")
    write(groups / "cgroup" / "cpu,cpuacct" / "cpu.cfs_period_us", "100000\n")
    assert parallel.available_memory_bytes() == 4 * GIB
    assert parallel.available_processors() == 2
    write(groups / "cgroup" / "cpu,cpuacct" / "cpu.cfs_quota_us", "-1\n")
    assert parallel.available_processors() == 64


def test_affinity_counts_and_one_worker_always_fits(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert parallel.workers_for(GIB, GIB) == 2
    write(groups / "self", "0::/\n")
    write(groups / "cgroup" / "memory.max", "1000\n")
    assert parallel.workers_for(GIB, GIB) == 1
