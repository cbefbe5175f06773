"""Names of places in storage."""

from pathlib import Path

import pytest

from chexradinet.errors import ConfigError
from chexradinet.store.uri import check_key, join_uri, parse_uri


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://inbox/2026/a b%20é#1?.dcm", "inbox", "2026/a b%20é#1?.dcm"),
        ("minio://inbox/a", "inbox", "a"),
        ("S3://inbox", "inbox", ""),
        ("s3://inbox/", "inbox", ""),
        ("/data/a b%20#1", None, "/data/a b%20#1"),
        ("/data/../x/./y", None, "/x/y"),
        ("/../../x", None, "/x"),
        ("file:///data/a%20b", None, "/data/a b"),
        ("file://localhost/data", None, "/data"),
    ],
)
def test_uri_is_read_as_bucket_and_key_or_as_path(uri: str, bucket: str | None, key: str) -> None:
    location = parse_uri(uri)
    assert (location.bucket, location.key) == (bucket, key)


def test_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_uri("inbox/../x").key == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a\0b", "not text"),
        ("gs://bucket/key", "'gs'"),
        ("https://host/bucket", "'https'"),
        ("s3:///key", "bucket ''"),
        ("s3://Bucket_/key", "'Bucket_'"),
        ("s3://ab/key", "3 to 63"),
        ("file://server/share", "three slashes"),
        ("file://", "three slashes"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_was_given(uri: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_uri(uri)


def test_joining_puts_one_slash_between() -> None:
    assert join_uri("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    assert join_uri("/data", "a") == "/data/a"
    assert join_uri("/", "a") == "/a"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "a/..", "../a", "a\0", "é" * 513])
def test_keys_that_no_directory_could_hold_are_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        check_key(key, "s3://bucket/")


def test_ordinary_keys_pass() -> None:
    for key in ("a", "..a/b..c", "date=2026-01-31/é #1.dcm", "a" * 1024):
        check_key(key, "s3://bucket/")


def test_key_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(ConfigError, match="Unicode"):
        check_key("a\udcff", "/data")
