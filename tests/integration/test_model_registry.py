"""Models in the Kubeflow Model Registry: the real server if one is given, else its contract.

With `TEST_MODEL_REGISTRY_URL` set to a running Model Registry the tests talk to that one.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests  # type: ignore[import-untyped]

from chexradinet.registry import register_model
from tests.serving import serving

DIGEST, URI = "ab" * 32, "s3://chexradinet-models/" + "ab" * 32
METRICS = {"test_mean_auroc": 0.93, "iou_0.3": 0.5}
FIELDS = {
    "registered_models": {"name"},
    "model_versions": {"name", "registeredModelId", "customProperties"},
    "artifacts": {"name", "uri", "artifactType"},
}
"""What each request may hold; the first are required. The server refuses unknown fields."""


class Registry(BaseHTTPRequestHandler):
    """Answers as the server's OpenAPI document says; seen to be equal to the real one here."""

    rows: list[dict[str, Any]]

    def answer(self, status: int, body: dict[str, Any]) -> None:
        """Send a status and a JSON body."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Answer a look-up by name, or a listing of artifacts."""
        url = urlsplit(self.path)
        *_, above, last = url.path.split("/")
        if last == "artifacts":
            items = [row for row in self.rows if (row["kind"], row["parent"]) == (last, above)]
            self.answer(200, {"items": items})
            return
        kind, asked = last.replace("model_artifact", "artifact") + "s", dict(parse_qsl(url.query))
        for row in self.rows:
            found = (row["kind"], row["name"], row["parent"])
            if found == (kind, asked["name"], asked.get("parentResourceId", "")):
                self.answer(200, row)
                return
        self.answer(404, {"code": "Not Found", "message": "not found"})

    def do_POST(self) -> None:
        """Make what is asked for."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = urlsplit(self.path).path.split("/")
        parent = body.get("registeredModelId", parts[-2] if parts[-1] == "artifacts" else "")
        if not set(body) <= FIELDS[parts[-1]] or not body["name"]:
            self.answer(400, {"code": "Bad Request", "message": "unknown field"})
            return
        row = {**body, "kind": parts[-1], "parent": parent, "id": str(len(self.rows) + 1)}
        self.rows.append(row)
        self.answer(201, row)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a registry's API, with `MODEL_REGISTRY_URL` set."""
    given = os.environ.get("TEST_MODEL_REGISTRY_URL", "")
    if given:
        monkeypatch.setenv("MODEL_REGISTRY_URL", given)
        yield f"{given}/api/model_registry/v1alpha3"
        return
    handler = type("Fresh", (Registry,), {"rows": []})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MODEL_REGISTRY_URL", f"{address}/")
        yield f"{address}/api/model_registry/v1alpha3"


@pytest.fixture
def name() -> str:
    """Return the name of a model that nobody registered."""
    return f"chexradinet-{secrets.token_hex(4)}"


def test_a_model_is_registered_with_metrics_card_and_uri_and_a_second_time_changes_nothing(
    registry: str, name: str
) -> None:
    card = "# A model\n\n| finding | AUROC |\n" + "| Effusion | 0.93 |\n" * 200
    assert register_model(name, DIGEST, URI, METRICS, card) is True
    assert register_model(name, DIGEST, URI, METRICS, card) is True
    model = requests.get(f"{registry}/registered_model", {"name": name}, timeout=60).json()
    asked = {"name": DIGEST, "parentResourceId": model["id"]}
    version = requests.get(f"{registry}/model_version", asked, timeout=60).json()
    shown = version["customProperties"]
    assert {key: shown[key]["double_value"] for key in METRICS} == METRICS
    assert shown["model_card"]["string_value"] == card
    address = f"{registry}/model_versions/{version['id']}/artifacts"
    (artifact,) = requests.get(address, timeout=60).json()["items"]
    assert (artifact["name"], artifact["uri"]) == (DIGEST, URI)


def test_another_model_is_another_version_of_the_same_name(registry: str, name: str) -> None:
    other = "cd" * 32
    assert register_model(name, DIGEST, URI, METRICS, "card")
    assert register_model(name, other, f"s3://models/{other}", {}, "card")
    model = requests.get(f"{registry}/registered_model", {"name": name}, timeout=60).json()
    for digest in (DIGEST, other):
        asked = {"name": digest, "parentResourceId": model["id"]}
        assert requests.get(f"{registry}/model_version", asked, timeout=60).status_code == 200


def test_without_an_address_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_REGISTRY_URL", raising=False)
    assert register_model("chexradinet", DIGEST, URI, METRICS, "card") is None


@pytest.mark.parametrize("answer", [b"<html>Sign in</html>", b"[]", b"{}"])
def test_an_address_that_is_no_registry_is_a_warning(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Page)) as server:
        monkeypatch.setenv("MODEL_REGISTRY_URL", f"http://127.0.0.1:{server.server_port}")
        assert register_model("chexradinet", DIGEST, URI, METRICS, "card") is False
    assert "published, but not registered" in caplog.text


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "no address", "ftp://x"])
def test_a_registry_that_cannot_be_reached_is_a_warning(
    address: str,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MODEL_REGISTRY_URL", address.format(port=free_port()))
    assert register_model("chexradinet", DIGEST, URI, METRICS, "card") is False
    assert "published, but not registered" in caplog.text
