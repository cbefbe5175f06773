"""How many processes a machine, or the container that this one runs in, can hold.

`os.cpu_count` tells the node's processors, whatever a pod may use of them. Control groups tell the
limits of a container, and so do they of a systemd service.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_SELF = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_processors() -> int:
    """Return the processors that this process may use, by affinity and quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([allowed or 1, *_quotas()]))


def available_memory_bytes() -> int:
    """Return the memory that this process and its children may use: of control group or machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_memory_limits()])


def workers_for(bytes_each: int, bytes_besides: int) -> int:
    """Return how many worker processes to start: a processor and memory for each; at least 1.

    Args:
        bytes_each: Most that a worker holds.
        bytes_besides: What the process that starts them needs.
    """
    in_memory = (available_memory_bytes() - bytes_besides) // bytes_each
    return max(1, min(available_processors(), in_memory))


def _quotas() -> Iterator[int]:
    """Yield processors by each quota above this process; a fraction of one counts as one."""
    for group in _groups("cpu"):
        text = _read(group / "cpu.max") or " ".join(
            _read(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
        numbers = text.split()
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers) and int(numbers[1]):
            yield max(1, math.ceil(int(numbers[0]) / int(numbers[1])))


def _memory_limits() -> Iterator[int]:
    for group in _groups("memory"):
        text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if text.isdecimal():
            yield int(text)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the control groups of this process for a controller, each with all above it.

    Version 2 has one tree for all controllers, version 1 one for each. If a container sees
    another path than the host's, its own group is the root of what it sees.
    """
    for line in _read(_SELF).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        mount = _MOUNT / controllers if controllers else _MOUNT
        group = mount / path.strip("/")
        while True:
            yield group
            if group == mount or mount not in group.parents:
                break
            group = group.parent


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
