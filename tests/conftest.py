"""Fixtures that all tests share."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chexradinet import parallel

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


_OF_WORKERS = [
    "chexradinet.dicom.reader", "chexradinet.ingest.decoding", "chexradinet.nightly.read",
    "chexradinet.regions.feature_classes", "chexradinet.regions.radiomics",
    "chexradinet.store.s3", "pytest",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_server_for_all_pools() -> Iterator[None]:
    """Let the server that workers are forked from import what the pools of all tests need.

    It imports what the first pool of a process needs; tests have pools of many kinds, and each of
    their workers would import the rest anew.
    """
    with pytest.MonkeyPatch.context() as patch:
        server = parallel._FORKSERVER
        patch.setattr(parallel, "_preload", lambda _: server.set_forkserver_preload(_OF_WORKERS))
        yield


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
    """Mark what trains a network, and let files with the most tests that take long run first.

    So `make test-fast` can leave out the former, and two processes end at about the same time.
    """
    slow: Counter[Path] = Counter()
    trains: Counter[Path] = Counter()
    for item in items:
        if "tiny_model" in getattr(item, "fixturenames", ()):
            item.add_marker("trains")
        slow[item.path] += item.get_closest_marker("slow") is not None
        trains[item.path] += item.get_closest_marker("trains") is not None
    items.sort(key=lambda item: (-slow[item.path], -trains[item.path]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped because a program is absent, and how to get it."""
    skipped = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])
               if isinstance(report.longrepr, tuple)]  # fmt: skip
    absent = Counter(text.removeprefix("Skipped: ") for text in skipped if _ABSENT in text)
    if absent:
        terminalreporter.section("skipped for want of a program: `make test-tools` installs them")
        for reason, count in sorted(absent.items()):
            terminalreporter.write_line(f"{count} tests: {reason}")
