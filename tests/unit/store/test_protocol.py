"""Conditional creation, checks of what is read, and trying again with a clock of the test's own."""

import hashlib
import logging
from pathlib import Path

import pytest

from chexradinet.errors import StoreError, StoreIntegrityError
from chexradinet.store.local import LocalStore
from chexradinet.store.protocol import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    Backoff,
    Expected,
    require_conditional_create,
    retrying,
    verified,
)


class ForgetfulStore(LocalStore):
    """A store that ignores the condition, as older S3 servers do."""

    def create(self, key: str, data: bytes) -> str:
        """Overwrite."""
        return self.put(key, data)


def test_store_that_ignores_the_condition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="If-None-Match"):
        require_conditional_create(ForgetfulStore(tmp_path), "ledger/")


def test_store_that_heeds_the_condition_passes_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        require_conditional_create(LocalStore(tmp_path), "ledger/")
    assert [info.key for info in LocalStore(tmp_path).list()] == ["ledger/conditional-create"]


DATA = [b"abc", b"", b"defg"]
SHA256 = hashlib.sha256(b"abcdefg").hexdigest()
MD5 = "7ac66c0f148de9519b8bd264312c4d64"


def test_no_bytes_match_a_length_of_zero() -> None:
    assert list(verified([], Expected(size_bytes=0), "x")) == []


@pytest.mark.parametrize("sha256", [None, SHA256])
@pytest.mark.parametrize("md5", [None, MD5])
def test_bytes_as_recorded_pass(sha256: str | None, md5: str | None) -> None:
    expected = Expected(size_bytes=7, sha256=sha256, md5=md5)
    assert b"".join(verified(DATA, expected, "x")) == b"abcdefg"


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (Expected(size_bytes=8), "7 bytes, but 8 bytes"),
        (Expected(size_bytes=7, sha256="0" * 64), f"SHA-256 {SHA256}, but 0000"),
        (Expected(size_bytes=7, md5="0" * 32), f"MD5 {MD5}, but 0000"),
    ],
)
def test_other_bytes_are_refused_naming_both_values(expected: Expected, text: str) -> None:
    with pytest.raises(StoreIntegrityError, match=text):
        list(verified(DATA, expected, "s3://bucket/key"))


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits_s: list[float] = []

    def sleep(self, wait_s: float) -> None:
        """Let time pass."""
        self.waits_s.append(wait_s)
        self.now_s += wait_s

    def backoff(self, total_s: float) -> Backoff:
        """Return waits by this clock."""
        return Backoff(total_s, sleep=self.sleep, clock=lambda: self.now_s)


def failing(times: int) -> tuple[list[int], object]:
    """Return a list of calls and an operation that fails some times, then returns `done`."""
    calls: list[int] = []

    def operation() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise ConnectionError("lost")
        return "done"

    return calls, operation


def test_no_time_for_retries_means_one_attempt() -> None:
    clock = Clock()
    calls, operation = failing(1)
    with pytest.raises(ConnectionError):
        retrying(operation, lambda _: True, clock.backoff(0))  # type: ignore[arg-type]
    assert (len(calls), clock.waits_s) == (1, [])


def test_success_after_failures_is_returned() -> None:
    clock = Clock()
    calls, operation = failing(3)
    assert retrying(operation, lambda _: True, clock.backoff(60)) == "done"  # type: ignore[arg-type]
    assert len(calls) == 4


def test_failure_for_good_is_raised_at_once() -> None:
    clock = Clock()
    calls, operation = failing(3)
    with pytest.raises(ConnectionError):
        retrying(operation, lambda _: False, clock.backoff(60))  # type: ignore[arg-type]
    assert (len(calls), clock.waits_s) == (1, [])


def test_waits_double_with_jitter_up_to_a_limit_and_end_with_the_total() -> None:
    clock = Clock()
    backoff = clock.backoff(120)
    while backoff.wait(ConnectionError()):
        pass
    ceilings_s = [min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**n) for n in range(len(clock.waits_s))]
    for wait_s, ceiling_s in zip(clock.waits_s[:-1], ceilings_s, strict=False):
        assert ceiling_s / 2 <= wait_s <= ceiling_s
    assert sum(clock.waits_s) == pytest.approx(120)
    other = Clock()
    other_backoff = other.backoff(120)
    for _ in range(5):
        other_backoff.wait(ConnectionError())
    assert other.waits_s[:5] != clock.waits_s[:5]


def test_progress_starts_the_time_anew() -> None:
    clock = Clock()
    backoff = clock.backoff(1)
    while backoff.wait(ConnectionError()):
        pass
    backoff.reset()
    assert backoff.wait(ConnectionError())
    assert clock.waits_s[-1] <= FIRST_WAIT_S


def test_log_holds_the_class_of_the_error_and_not_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    Clock().backoff(5).wait(ConnectionError("planted-secret"))
    assert "ConnectionError" in caplog.text
    assert "planted" not in caplog.text
