"""A server that answers as Kubeflow Pipelines' v2beta1 API does, and the rendered overlays."""

import json
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.api_server import ApiServer
from tests.manifests.custom_resources import definitions
from tests.manifests.objects import Object
from tests.pipelines.test_native import CRDS
from tests.serving import serving

NAME = "chexradinet-nightly"
MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
TOKEN = "projected-token"  # noqa: S105 - of the test's own server


class Api(ThreadingHTTPServer):
    """Pipelines, experiments and runs, with the filters of KFP's v2beta1 API."""

    multi_user = False
    refuse: tuple[int, str] | None = None
    page: bytes | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pipelines = {("", NAME): "pipeline-1"}
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    """Answers for `Api`."""

    server: Api

    def answer(self, status: int, body: object) -> None:
        """Send a status and a JSON body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        """Answer as an API that refuses would, where the test asks for it."""
        self.server.tokens.append(self.headers.get("Authorization"))
        if self.server.page is not None:
            self.answer(200, self.server.page)
        elif self.server.refuse:
            status, message = self.server.refuse
            self.answer(status, {"error": message})
        elif self.server.multi_user and self.server.tokens[-1] != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Unauthenticated"})
        else:
            return False
        return True

    def do_GET(self) -> None:
        """Answer a look-up or a listing."""
        if self.refused():
            return
        path, _, query = self.path.removeprefix("/apis/v2beta1/").partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        if path.startswith("pipelines/names/"):
            key = (asked.get("namespace", ""), urllib.parse.unquote(path.split("/")[-1]))
            found = self.server.pipelines.get(key)
            self.answer(200 if found else 404, {"pipeline_id": found} if found else {"code": 5})
            return
        if self.server.multi_user and not asked.get("namespace"):
            self.answer(400, {"error": "namespace required in multi-user mode"})
            return
        (predicate,) = json.loads(asked["filter"])["predicates"]
        assert (predicate["operation"], predicate["key"]) == ("EQUALS", "display_name")
        wanted = predicate["string_value"]
        rows = getattr(self.server, path)
        self.answer(200, {path: [row for row in rows if row["display_name"] == wanted]})

    def do_POST(self) -> None:
        """Make an experiment or a run."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        path = self.path.removeprefix("/apis/v2beta1/")
        self.server.bodies.append((path, body))
        made = body | {f"{path[:-1]}_id": f"{path[:-1]}-{len(self.server.bodies)}"}
        made["state"] = "PENDING"
        getattr(self.server, path).append(made)
        self.answer(200, made)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[Api]:
    """Yield a running server without runs, that knows the nightly pipeline."""
    with serving(Api()) as server:
        yield server


@pytest.fixture(scope="session")
def overlays(tool: Callable[[str, str], str]) -> dict[str, list[dict[str, Any]]]:
    """Return the objects of every overlay as `kubectl kustomize` renders them, by overlay."""
    tool("kubectl", "its `kustomize` renders the overlays")
    return {path.name: rendered(path) for path in sorted((MANIFESTS / "overlays").iterdir())}


@pytest.fixture(scope="session")
def with_trainer(
    tool: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Return the objects of `overlays/production` with options/trainer, as its comment says."""
    tool("kubectl", "its `kustomize` renders the overlays")
    manifests = Path(shutil.copytree(MANIFESTS, tmp_path_factory.mktemp("trainer") / "manifests"))
    run = manifests / "overlays" / "production" / "run" / "kustomization.yaml"
    text = run.read_text(encoding="utf-8")
    assert text.count("  # - ../../../options/trainer") == 1
    run.write_text(text.replace("# - ../../../options/trainer", "- ../../../options/trainer"))
    return rendered(manifests / "overlays" / "production")


@pytest.fixture(scope="session")
def custom_resources(
    tool: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Return the published definition of each custom resource that an overlay uses, by kind."""
    go = tool("go", "it downloads the definitions that each kind's project publishes")
    return definitions(go, tmp_path_factory.mktemp("modules"))


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, custom_resources: dict[str, Object]
) -> Iterator[ApiServer]:
    """Yield a server that knows the custom resources of the overlays and of Kubeflow."""
    started = ApiServer(tmp_path_factory.mktemp("cluster"))
    try:
        known = [*custom_resources.values(), *map(pipelines_definition, CRDS)]
        started.kubectl("apply", "--server-side", "-f", "-", given=known)
        names = [f"crd/{one['metadata']['name']}" for one in known]
        started.kubectl("wait", "--for=condition=Established", *names)
        yield started
    finally:
        started.stop()


def pipelines_definition(kind: str) -> Object:
    """Return a definition of Kubeflow's kind, with the fields of `CRDS`."""
    plural = f"{kind.lower()}s"
    spec = dict(CRDS[kind]["properties"]["spec"]["properties"])
    for free in ("pipelineSpec", "platformSpec"):
        if free in spec:
            spec[free] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    fields = {"spec": {"type": "object", "properties": spec}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.pipelines.kubeflow.org"},
        "spec": {
            "group": "pipelines.kubeflow.org",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": "v2beta1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": fields}},
                }
            ],
        },
    }
