"""Endpoint and credentials from the environment."""

from pathlib import Path

import pytest

from chexradinet.errors import StoreAccessError
from chexradinet.store.opening import open_store
from chexradinet.store.uri import access_from_environment

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
