"""Temporary credentials against MinIO's own security token service, renewed while a run works."""

import base64
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minio.credentials.credentials import Credentials
from minio.credentials.providers import AssumeRoleProvider

from chexradinet.config import StoreConfig
from chexradinet.errors import StoreAccessError, StoreUnavailableError
from chexradinet.store import open_store
from chexradinet.store.administration import User, apply_policies
from chexradinet.store.uri import access_from_environment
from tests.serving import serving

ONCE = StoreConfig(retry_total_s=0, connect_timeout_s=5, read_timeout_s=20)
PERSON = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}],
}


def temporary(server: SimpleNamespace) -> Credentials:
    """Return keys with a session token, as MinIO's service gives to a user."""
    access = access_from_environment(
        {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }
    )
    user = User(policy="person", access_key="person", secret_key=secrets.token_hex(16))
    assert apply_policies({"person": PERSON}, (user,), access)
    return AssumeRoleProvider(
        sts_endpoint=server.endpoint,
        access_key=user.access_key,
        secret_key=user.secret_key,
        region="us-east-1",
    ).retrieve()


def profile(given: Credentials, secret_key: str | None = None) -> str:
    """Return a shared credentials file."""
    return (
        f"[night]\naws_access_key_id = {given.access_key}\n"
        f"aws_secret_access_key = {secret_key or given.secret_key}\n"
        f"aws_session_token = {given.session_token}\n"
    )


@pytest.fixture
def without_keys(monkeypatch: pytest.MonkeyPatch, s3_uri: str) -> str:
    """Return the URI of a bucket, with only the store's address in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return s3_uri


def test_keys_with_a_session_token_are_taken(
    minio_server: SimpleNamespace, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = temporary(minio_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", given.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", given.secret_key)
    with pytest.raises(StoreAccessError):
        open_store(s3_uri, ONCE)[0].put("a", b"x")
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(given.session_token))
    store, _ = open_store(s3_uri, ONCE)
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_a_shared_file_is_read_again_when_it_changes(
    minio_server: SimpleNamespace,
    without_keys: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "night")
    store, _ = open_store(without_keys, ONCE)
    with pytest.raises(StoreAccessError, match="has no keys in profile 'night'"):
        store.put("a", b"x")
    file.write_text(profile(temporary(minio_server)))
    store.put("a", b"x")
    file.write_text(profile(temporary(minio_server), secret_key="0" * 40))
    with pytest.raises(StoreAccessError, match="secret does not fit"):
        store.get("a")
    file.write_text(profile(temporary(minio_server)))
    assert store.get("a") == b"x"


class Issuer(ThreadingHTTPServer):
    """An OpenID provider: its keys, and tokens for whoever asks in this process."""

    def __init__(self, key: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = str(key)
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def documents(self) -> dict[str, Any]:
        """Return what is served, by path."""
        asked = ["openssl", "rsa", "-in", self.key, "-noout", "-modulus"]
        said = subprocess.run(asked, check=True, capture_output=True).stdout
        modulus = int(said.partition(b"=")[2], 16)
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "one"}
        for name, value in (("n", modulus), ("e", 65537)):
            key[name] = encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        configuration = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/none",
            "token_endpoint": f"{self.url}/none",
            "response_types_supported": ["id_token"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }
        return {"/.well-known/openid-configuration": configuration, "/keys": {"keys": [key]}}

    def token(self, policy: str, lifetime_s: int = 3600) -> str:
        """Return a signed token that grants a policy."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": "chexradinet",
            "sub": "runner",
            "policy": policy,
        }
        claims |= {"iat": now, "exp": now + lifetime_s}
        head = {"alg": "RS256", "typ": "JWT", "kid": "one"}
        text = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", self.key]
        signed = subprocess.run(sign, input=text.encode(), check=True, capture_output=True)
        return f"{text}.{encoded(signed.stdout)}"


class Handler(BaseHTTPRequestHandler):
    """Answers for `Issuer`."""

    server: Issuer

    def do_GET(self) -> None:
        """Send a document."""
        data = json.dumps(self.server.documents()[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def encoded(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    """Yield a running provider."""
    with serving(Issuer(tmp_path / "key.pem")) as started:
        yield started


def test_a_web_identity_is_exchanged_for_credentials_and_again_when_they_expire(
    issuer: Issuer,
    start_minio: Callable[..., SimpleNamespace],
    use_server: Callable[[SimpleNamespace], None],
    new_bucket: Callable[[SimpleNamespace], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = start_minio(
        settings={
            "MINIO_IDENTITY_OPENID_CONFIG_URL": f"{issuer.url}/.well-known/openid-configuration",
            "MINIO_IDENTITY_OPENID_CLIENT_ID": "chexradinet",
        }
    )
    use_server(server)
    uri = f"s3://{new_bucket(server)}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "token"
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    store, _ = open_store(uri, ONCE)
    file.write_text(issuer.token("readwrite"))
    store.put("a", b"x")

    # The next token may only read; the credentials of the first are kept until they expire.
    file.write_text(issuer.token("readonly") + "\n")
    store.put("a", b"y")
    expire(store)
    assert store.get("a") == b"y"
    with pytest.raises(StoreAccessError, match="may not do this"):
        store.put("a", b"z")

    forged = issuer.token("readwrite")[:-8] + "AAAAAAAA"
    for bad in (forged, issuer.token("readwrite", lifetime_s=-60), ""):
        file.write_text(bad)
        expire(store)
        with pytest.raises(StoreAccessError, match=r"AWS_WEB_IDENTITY_TOKEN_FILE") as caught:
            store.get("a")
        assert caught.value.__cause__ is None
        assert not bad or bad not in f"{caught.value}{caplog.text}"
    file.unlink()
    with pytest.raises(StoreAccessError, match="gives no credentials"):
        store.get("a")

    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    file.write_text(issuer.token("readwrite"))
    with pytest.raises(StoreUnavailableError, match="TokenServiceError") as caught_again:
        open_store(uri, ONCE)[0].get("a")
    assert file.read_text() not in str(caught_again.value)


def expire(store: Any) -> None:  # noqa: ANN401 - an S3Store
    """Let the credentials that were exchanged last be over."""
    store._client._provider._source._credentials = None
