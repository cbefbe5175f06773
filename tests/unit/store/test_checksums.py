"""Length and checksum of a stream of bytes."""

import hashlib

import pytest

from chexradinet.errors import StoreIntegrityError
from chexradinet.store.checksums import Expected, verified

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
