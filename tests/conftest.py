"""Fixtures that all tests share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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
