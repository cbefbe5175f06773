"""The command line as a shell starts it, in this process."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from chexradinet.cli import main


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON on standard output."""
        return dict(json.loads(self.out.splitlines()[-1]))


@pytest.fixture
def chexradinet(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Return a function that runs `chexradinet --json …` and gives exit code and output."""

    def run(*words: object) -> Done:
        monkeypatch.setenv("COLUMNS", "1000")  # messages are not wrapped
        monkeypatch.setattr(sys, "argv", ["chexradinet", "--json", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capfd.readouterr()
        return Done(code, captured.out, " ".join(captured.err.split()))

    return run
