"""docs/security.md promises nothing that no test shows."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_promise_names_tests_that_there_are() -> None:
    promises = re.findall(r"^- (.+(?:\n  .+)*)", TEXT.partition("\n## ")[0], re.MULTILINE)
    assert len(promises) > 10
    for promise in promises:
        _, *named = re.split(r"`(tests/\S+\.py)`:", promise)
        assert named, promise
        for file, names in zip(named[::2], named[1::2], strict=True):
            source = (ROOT / file).read_text(encoding="utf-8")
            for name in re.findall(r"`(test_\w+)`", names):
                assert f"def {name}(" in source, f"{file} has no {name}"
