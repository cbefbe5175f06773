"""The compiled pipelines, made once, and a Kubeflow server to submit them to."""

import copy
import itertools
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api as kfp_api
import pytest

from pipelines.compile import compile_nightly, compile_study, compile_training
from pipelines.parameters import load_documents
from tests.serving import serving


@pytest.fixture(scope="session")
def compiled_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the training pipeline, compiled for two rounds."""
    return compile_training(tmp_path_factory.mktemp("compiled"), max_rounds=2)


@pytest.fixture(scope="session")
def _documents(compiled_training: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_documents(compiled_training)


@pytest.fixture
def document(_documents: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Return the pipeline specification, for a test to change as it likes."""
    return copy.deepcopy(_documents[0])


@pytest.fixture
def platform(_documents: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Return the platform document, for a test to change as it likes."""
    return copy.deepcopy(_documents[1])


class FakeKubeflow:
    """A server of the API's endpoints that are used, held to the models of its OpenAPI document."""

    def __init__(self) -> None:
        self.pipelines: list[kfp_api.V2beta1Pipeline] = []
        self.versions: list[kfp_api.V2beta1PipelineVersion] = []
        self.experiments: list[kfp_api.V2beta1Experiment] = []
        self.runs: list[kfp_api.V2beta1Run] = []
        self.recurring: list[kfp_api.V2beta1RecurringRun] = []
        self.requests: list[str] = []
        """`METHOD path` of every request, in order."""
        self.uploaded: list[bytes] = []
        self.numbers = itertools.count()
        self.bearer = ""
        """Token that is asked for; empty asks for none."""
        self.refuse: dict[str, tuple[int, str]] = {}
        """Status and message by `METHOD path`."""
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        """State of a run at each look; the last one stays."""
        self.tasks: list[kfp_api.V2beta1PipelineTaskDetail] = []
        self.content_type = "application/json"
        self.health = {"multi_user": False, "tag_name": "2.17.0"}
        self.client = kfp_api.ApiClient(kfp_api.Configuration())
        self.host = ""

    @property
    def writes(self) -> list[str]:
        """Requests that create or delete."""
        return [one for one in self.requests if not one.startswith("GET ")]

    def read(self, body: bytes, model: str) -> Any:  # noqa: ANN401
        """Return a request's body as a model; a key that the model lacks is an error."""
        found = self.client.deserialize(SimpleNamespace(data=body.decode()), model)
        echoed = self.client.sanitize_for_serialization(found)
        assert echoed == json.loads(body), f"{model} does not hold {body!r}"
        return found

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:  # noqa: ANN401
        """Return the model that answers a request, or a status and message."""
        match [method, *path.split("/")]:
            case ["GET", "healthz"]:
                return self.health
            case [_, "pipelines", *rest]:
                return self._pipelines(method, rest, query, body)
            case [_, "experiments"]:
                return self._experiments(method, query, body)
            case [_, "runs", *run_id]:
                return self._runs(method, "".join(run_id), body)
            case [_, "recurringruns", *one]:
                return self._recurring(method, "".join(one), query, body)
        return 404, f"no endpoint {method} {path}"

    def _pipelines(self, method: str, rest: list[str], query: dict[str, str], body: bytes) -> Any:  # noqa: ANN401
        match [method, *rest]:
            case ["GET", "names", name]:
                place = query.get("namespace", "")
                found = (
                    one
                    for one in self.pipelines
                    if one.name == name and (one.namespace or "") == place
                )
                return next(found, (404, "not found"))
            case ["GET", pipeline_id, "versions"]:
                return self._page_of_versions(pipeline_id, query)
            case ["POST", "upload_version"]:
                return self._upload(query, body)
            case ["DELETE", pipeline_id, *version]:
                assert version or query["cascade"] == "True"
                self.versions = [
                    one
                    for one in self.versions
                    if one.pipeline_id != pipeline_id
                    or version not in ([], ["versions", one.pipeline_version_id])
                ]
                kept = [one for one in self.pipelines if one.pipeline_id != pipeline_id]
                self.pipelines = self.pipelines if version else kept
                return None
        made = self.read(body, "V2beta1Pipeline")
        made.pipeline_id = f"pipeline-{len(self.pipelines)}"
        self.pipelines.append(made)
        return made

    def _page_of_versions(self, pipeline_id: str, query: dict[str, str]) -> Any:  # noqa: ANN401
        assert query["sort_by"] == "created_at desc"
        found = [one for one in reversed(self.versions) if one.pipeline_id == pipeline_id]
        first = int(query.get("page_token") or 0)
        return kfp_api.V2beta1ListPipelineVersionsResponse(
            pipeline_versions=found[first : first + 1],
            next_page_token=str(first + 1) if first + 1 < len(found) else "",
        )

    def _upload(self, query: dict[str, str], body: bytes) -> Any:  # noqa: ANN401
        name = query["name"]
        if any(one.name == name for one in self.versions):
            return 409, f"the name {name} already exists"
        self.uploaded.append(body)
        made = kfp_api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=f"version-{len(self.versions)}",
            name=name,
            display_name=name,
            description=query["description"],
        )
        self.versions.append(made)
        return made

    def _named(self, known: list[Any], query: dict[str, str]) -> list[Any]:
        chosen = self.read(query["filter"].encode(), "V2beta1Filter").predicates
        wanted = {one.string_value for one in chosen if one.key == "display_name"}
        return [one for one in known if one.display_name in wanted]

    def _experiments(self, method: str, query: dict[str, str], body: bytes) -> Any:  # noqa: ANN401
        if method == "GET":
            found = self._named(self.experiments, query)
            return kfp_api.V2beta1ListExperimentsResponse(experiments=found)
        made = self.read(body, "V2beta1Experiment")
        made.experiment_id = f"experiment-{len(self.experiments)}"
        self.experiments.append(made)
        return made

    def _runs(self, method: str, run_id: str, body: bytes) -> Any:  # noqa: ANN401
        if method == "POST":
            made = self.read(body, "V2beta1Run")
            made.run_id = f"run-{len(self.runs)}"
            self.runs.append(made)
            return made
        run = next(one for one in self.runs if one.run_id == run_id)
        run.state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        run.run_details = kfp_api.V2beta1RunDetails(task_details=self.tasks)
        return run

    def _recurring(self, method: str, one: str, query: dict[str, str], body: bytes) -> Any:  # noqa: ANN401
        if method == "GET":
            found = self._named(self.recurring, query)
            return kfp_api.V2beta1ListRecurringRunsResponse(recurring_runs=found)
        if method == "DELETE":
            self.recurring = [kept for kept in self.recurring if kept.recurring_run_id != one]
            return None
        made = self.read(body, "V2beta1RecurringRun")
        made.recurring_run_id = f"recurring-{next(self.numbers)}"
        made.service_account = made.service_account or "pipeline-runner"
        self.recurring.append(made)
        return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kubeflow: FakeKubeflow

    def _serve(self) -> None:
        kubeflow = self.kubeflow
        address = urlsplit(self.path)
        path = address.path.removeprefix("/apis/v2beta1/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kubeflow.requests.append(f"{self.command} {path}")
        if kubeflow.bearer and self.headers.get("Authorization") != f"Bearer {kubeflow.bearer}":
            answer: Any = (401, "Unauthenticated: token has expired")
        elif f"{self.command} {path}" in kubeflow.refuse:
            answer = kubeflow.refuse[f"{self.command} {path}"]
        else:
            answer = kubeflow.answer(self.command, path, dict(parse_qsl(address.query)), body)
        status = 200
        if isinstance(answer, tuple):
            status, answer = answer[0], {"code": 1, "message": answer[1], "details": []}
        text = json.dumps(kubeflow.client.sanitize_for_serialization(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kubeflow.content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def kubeflow() -> Iterator[FakeKubeflow]:
    """Serve an empty Kubeflow on this machine."""
    fake = FakeKubeflow()
    handler = type("Handler", (_Handler,), {"kubeflow": fake})
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        fake.host = f"http://127.0.0.1:{server.server_address[1]}"
        yield fake


@pytest.fixture(scope="session")
def compiled_nightly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the nightly pipeline, compiled."""
    return compile_nightly(tmp_path_factory.mktemp("compiled-nightly"))


@pytest.fixture(scope="session")
def compiled_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the study pipeline, compiled."""
    return compile_study(tmp_path_factory.mktemp("compiled-study"))
