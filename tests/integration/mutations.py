"""Read many damaged files in a process of their own, which may die without ending the tests.

A crash of a C decoder, a hang or a memory limit ends this process, which the test that started it
sees. Every case is reproducible from its number. Anything but an image or a rejection is an error.
"""

import faulthandler
import resource
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

MAX_SECONDS = 10
MAX_BYTES = 3 << 30


def read_cases(
    seed: int,
    count: int,
    case: Callable[[np.random.Generator], bytes],
    outcome: Callable[[bytes], str],
) -> None:
    """Read `count` files and print how many came to which end.

    Args:
        seed: Random seed of all cases.
        count: How many.
        case: Makes the bytes of one file.
        outcome: Reads them and returns what became of them.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    ends: Counter[str] = Counter()
    for number in range(count):
        content = case(np.random.default_rng([seed, number]))
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        try:
            ends[outcome(content)] += 1
        except BaseException:
            sys.stderr.write(f"case {seed} {number}\n")
            raise
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(f"{sum(ends.values())} cases, peak {peak} MiB: {dict(ends)}\n")


def with_changed_bytes(
    content: bytes, random: np.random.Generator, regions: tuple[tuple[int, int], ...]
) -> bytes:
    """Return the file with some bytes changed, lost, doubled or set to an extreme.

    Args:
        content: The file.
        random: Decides.
        regions: Where: one of these, drawn evenly; cut at the end of the file.
    """
    changed = bytearray(content)
    start, end = regions[int(random.integers(len(regions)))]
    end = min(end, len(changed))
    start = min(start, end - 1)
    kind = int(random.integers(10))
    place = int(random.integers(start, end))
    length = int(random.integers(1, 64))
    if kind == 0:
        return bytes(changed[:place])
    if kind == 1:
        return bytes(changed[:place] + changed[place + length :])
    if kind == 2:
        return bytes(changed[:place] + changed[place : place + length] + changed[place:])
    if kind == 3:
        extreme = _EXTREMES[int(random.integers(len(_EXTREMES)))]
        order = "little" if random.integers(2) else "big"
        changed[place : place + 4] = extreme.to_bytes(4, order)  # type: ignore[arg-type]
        return bytes(changed)
    for spot in random.integers(start, end, int(random.integers(1, 9))):
        changed[spot] = int(random.integers(256))
    return bytes(changed)


_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
