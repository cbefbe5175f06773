"""Fixtures that all tests share."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

_ABSENT = " is absent: "

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real radiographs and reference values; skip where it is absent.

    Under `CI=true` its absence is a failure, so that a missing mount cannot pass for success.
    """
    if not SHARED_DATA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED_DATA} is missing, and CI must not skip the tests that read it")
        pytest.skip(f"{SHARED_DATA} is absent: real radiographs are needed for this test")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tool() -> Callable[[str, str], str]:
    """Return a function that finds a program, or skips saying how to get it; CI must have it."""

    def find(name: str, how: str) -> str:
        found = shutil.which(name)
        if found is None and os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing, and CI must not skip what needs it: {how}")
        if found is None:
            pytest.skip(f"{name} is absent: {how}")
        return str(found)

    return find


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what trains a network, so that `make test-fast` can leave it out."""
    for item in items:
        if "tiny_model" in getattr(item, "fixturenames", ()):
            item.add_marker("trains")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped because a program is absent, and how to get it."""
    skipped = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])
               if isinstance(report.longrepr, tuple)]  # fmt: skip
    absent = Counter(text.removeprefix("Skipped: ") for text in skipped if _ABSENT in text)
    if absent:
        terminalreporter.section("skipped for want of a program: `make test-tools` installs them")
        for reason, count in sorted(absent.items()):
            terminalreporter.write_line(f"{count} tests: {reason}")
