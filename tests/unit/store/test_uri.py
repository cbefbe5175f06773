"""Names of places in storage; endpoint and credentials from the environment."""

from pathlib import Path

import pytest

from chexradinet.errors import ConfigError, StoreAccessError
from chexradinet.store import open_store
from chexradinet.store.uri import access_from_environment, check_key, join_uri, parse_uri


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


COMPLETE = {
    "AWS_ENDPOINT_URL": "http://minio.team-a.svc:9000",
    "AWS_ACCESS_KEY_ID": "planted-name",
    "AWS_SECRET_ACCESS_KEY": "planted-secret",
}


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_missing_variable_is_named_with_the_document(name: str, value: str | None) -> None:
    environ = {key: given for key, given in COMPLETE.items() if key != name}
    if value is not None:
        environ[name] = value
    with pytest.raises(StoreAccessError, match=rf"{name}.*docs/operations\.md"):
        access_from_environment(environ)


def test_opening_a_bucket_without_credentials_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreAccessError, match="AWS_ENDPOINT_URL"):
        open_store("s3://bucket/key")


@pytest.mark.parametrize(
    ("url", "endpoint", "secure"),
    [
        ("http://minio:9000", "minio:9000", False),
        ("https://s3.example.org/", "s3.example.org", True),
        ("https://[::1]:9000", "[::1]:9000", True),
    ],
)
def test_endpoint_is_read(url: str, endpoint: str, secure: bool) -> None:
    access = access_from_environment({**COMPLETE, "AWS_ENDPOINT_URL": url})
    assert (access.endpoint, access.secure) == (endpoint, secure)
    assert (access.region, access.session_token, access.ca_bundle) == ("us-east-1", None, None)


@pytest.mark.parametrize(
    "url",
    ["minio:9000", "ftp://minio", "http://", "http://minio/path", "http://minio:port", "http://[",
     "http://planted:planted@minio"],
)  # fmt: skip
def test_endpoint_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(StoreAccessError, match="AWS_ENDPOINT_URL") as caught:
        access_from_environment({**COMPLETE, "AWS_ENDPOINT_URL": url})
    assert "planted" not in str(caught.value)


def test_secrets_are_not_in_the_repr() -> None:
    access = access_from_environment({**COMPLETE, "AWS_SESSION_TOKEN": "planted-token"})
    assert "planted-token" in (access.session_token or "")
    assert "planted" not in repr(access)


def test_missing_bundle_of_certificates_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreAccessError, match="AWS_CA_BUNDLE"):
        access_from_environment({**COMPLETE, "AWS_CA_BUNDLE": str(tmp_path / "none.pem")})


FILES = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token", "AWS_SHARED_CREDENTIALS_FILE": "/file"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_the_place_of_keys_unless_one_is_set(name: str) -> None:
    environ = {"AWS_ENDPOINT_URL": COMPLETE["AWS_ENDPOINT_URL"], name: FILES[name]}
    access = access_from_environment(environ)
    assert (access.access_key, access.secret_key) == ("", "")
    with pytest.raises(StoreAccessError, match="AWS_SECRET_ACCESS_KEY"):
        access_from_environment({**environ, "AWS_ACCESS_KEY_ID": "planted-name"})


@pytest.mark.parametrize(
    ("endpoint", "more", "service"),
    [
        ("https://s3.eu-west-1.amazonaws.com", {}, "https://sts.eu-west-1.amazonaws.com"),
        ("https://minio.example.org", {}, "https://minio.example.org"),
        ("https://amazonaws.com.example.org", {}, "https://amazonaws.com.example.org"),
        ("http://minio:9000", {"AWS_ENDPOINT_URL_STS": "https://sts.lan"}, "https://sts.lan"),
    ],
)
def test_the_token_service_is_the_one_named_else_the_one_that_belongs_to_the_store(
    endpoint: str, more: dict[str, str], service: str
) -> None:
    environ = {**COMPLETE, **more, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "eu-west-1"}
    assert access_from_environment(environ).sts_url == service
