"""Reading a run's artifacts as the web interface does, from a server of the wire format."""

import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as kfp_api
import pytest

from chexradinet.errors import ChexRadiNetError, ConfigError
from pipelines.acceptance_cluster import training_results
from pipelines.api import Api, Endpoint, KubeflowError, KubeflowNotFoundError
from pipelines.outputs import outputs_of, read_file, require_web_interface
from tests.serving import serving

ROOT = "minio://artifacts/kfp/training/run-1"
PAGE = b"<!DOCTYPE html><p>figures</p>"
PUBLISHED = b"**Published.** The first model."


def text(number: int, value: str | bytes) -> bytes:
    """Encode a field of protobuf's wire type 2: text, bytes or a message."""
    raw = value.encode() if isinstance(value, str) else value
    assert len(raw) < 128 * 128
    length = bytes([len(raw)]) if len(raw) < 128 else bytes([len(raw) & 127 | 128, len(raw) >> 7])
    return bytes([number << 3 | 2]) + length + raw


def double(number: int, value: float) -> bytes:
    return bytes([number << 3 | 1]) + struct.pack("<d", value)


def pair(key: str, value: bytes) -> bytes:
    return text(1, key) + text(2, value)


def record(**numbers: float) -> bytes:
    """Encode a google.protobuf.Value that holds a Struct of numbers."""
    fields = (text(1, pair(key, double(2, value))) for key, value in numbers.items())
    return text(5, b"".join(fields))


def artifact(step: str, name: str, kind: str, **properties: bytes) -> bytes:
    fields = [text(3, f"{ROOT}/{step}/salt/{name}"), text(8, kind)]
    fields += [text(5, pair(key, value)) for key, value in properties.items()]
    return text(1, b"".join(fields))


CURVE = [(0.0, 0.0), (0.25, 0.5), (1.0, 1.0)]
POINTS = b"".join(text(1, record(falsePositiveRate=x, recall=y)) for x, y in CURVE)
LIST = text(1, pair("list", text(6, POINTS)))
ARTIFACTS = b"".join(
    (
        artifact(
            "evaluate",
            "metrics",
            "system.Metrics",
            test_mean_auroc=double(2, 0.75),
            zero=double(2, 0),
        ),
        artifact(
            "evaluate", "roc", "system.ClassificationMetrics", confidenceMetrics=text(4, LIST)
        ),
        artifact(
            "evaluate", "report", "system.HTML", store_session_info=text(3, '{"Provider":"minio"}')
        ),
        artifact("publish", "decision", "system.Markdown"),
    )
)


class Interface:
    """What the web interface knows, and what it was asked."""

    def __init__(self) -> None:
        self.host = ""
        self.artifacts = ARTIFACTS
        self.status = "grpc-status:0"
        self.decision = PUBLISHED
        self.files: list[dict[str, list[str]]] = []

    def answer(self, path: str, body: bytes) -> bytes | None:
        """Return the answer to a request; None if there is no such path."""
        address = urlsplit(path)
        if address.path == "/artifacts/get":
            self.files.append(parse_qs(address.query))
            return self.decision if address.query.count("decision") else PAGE
        service, _, method = address.path.strip("/").partition("/")
        if service != "ml_metadata.MetadataStoreService":
            return None
        assert body[:5] == struct.pack(">BI", 0, len(body) - 5)
        if method == "GetContextByTypeAndName":
            known = text(1, "system.PipelineRun") + text(2, "run-1")
            message = text(1, bytes([1 << 3, 7])) if body[5:] == known else b""
        else:
            assert (method, body[5:]) == ("GetArtifactsByContext", bytes([1 << 3, 7]))
            message = self.artifacts
        trailer = self.status.encode()
        frames = ((0, message), (0x80, trailer))
        return b"".join(struct.pack(">BI", flag, len(part)) + part for flag, part in frames)


@pytest.fixture
def interface() -> Iterator[Interface]:
    """Serve the web interface on this machine."""
    known = Interface()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = known.answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self._send(answer)

        def do_GET(self) -> None:
            self._send(known.answer(self.path, b""))

        def _send(self, answer: bytes | None) -> None:
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        known.host = f"http://127.0.0.1:{server.server_address[1]}"
        yield known


def api_of(host: str, **rest: Any) -> Api:  # noqa: ANN401
    configuration = kfp_api.Configuration(host=host)
    runs = kfp_api.RunServiceApi(kfp_api.ApiClient(configuration))
    unused: Any = None
    return Api(Endpoint(host=host, **rest), unused, unused, unused, runs, unused)


def test_values_of_metrics_are_read_zero_too(interface: Interface) -> None:
    metrics, roc, *_ = outputs_of(api_of(interface.host), "run-1")
    assert (metrics.step, metrics.name, metrics.kind) == ("evaluate", "metrics", "system.Metrics")
    assert metrics.properties == {"test_mean_auroc": 0.75, "zero": 0.0}
    points = roc.properties["confidenceMetrics"]["list"]
    assert [(point["falsePositiveRate"], point["recall"]) for point in points] == CURVE


def test_a_file_is_asked_for_with_the_credentials_that_its_artifact_names(
    interface: Interface,
) -> None:
    api = api_of(interface.host, namespace="team")
    (report,) = [one for one in outputs_of(api, "run-1") if one.name == "report"]
    assert read_file(api, report) == PAGE
    assert interface.files == [
        {
            "source": ["minio"],
            "bucket": ["artifacts"],
            "key": ["kfp/training/run-1/evaluate/salt/report"],
            "namespace": ["team"],
            "providerInfo": ['{"Provider":"minio"}'],
        }
    ]


def test_a_run_that_the_metadata_store_does_not_know_is_an_error(interface: Interface) -> None:
    with pytest.raises(KubeflowNotFoundError, match="knows no run run-2"):
        outputs_of(api_of(interface.host), "run-2")


def test_a_refusal_of_the_metadata_store_is_an_error(interface: Interface) -> None:
    interface.status = "grpc-status:13\r\ngrpc-message:no database"
    with pytest.raises(KubeflowError, match="grpc-status:13 grpc-message:no database"):
        outputs_of(api_of(interface.host), "run-1")


def test_the_api_server_alone_is_told_from_the_web_interface(interface: Interface) -> None:
    require_web_interface(api_of(f"{interface.host}/pipeline"))
    require_web_interface(api_of("http://api-server:8888", ui_host=interface.host))
    with pytest.raises(ConfigError, match=r"set KFP_HOST, or KFP_UI_HOST"):
        require_web_interface(api_of(f"{interface.host}/other"))


def test_results_of_a_training_are_told(interface: Interface) -> None:
    told = training_results(api_of(interface.host), "run-1")
    assert told == f"published; test AUROC 0.750, ROC of 3 points, report of {len(PAGE)} bytes"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("salt/roc", "salt/cor", "evaluate of run run-1 lacks ['roc']"),
        ("test_mean_auroc", "best_mean_auroc", "the metrics have no test_mean_auroc"),
    ],
)
def test_results_that_a_training_lacks_are_named(
    interface: Interface, old: str, new: str, message: str
) -> None:
    interface.artifacts = ARTIFACTS.replace(old.encode(), new.encode())
    with pytest.raises(ChexRadiNetError, match=message.replace("[", r"\[")):
        training_results(api_of(interface.host), "run-1")


def test_a_model_that_was_not_published_fails_the_training(interface: Interface) -> None:
    interface.decision = b"**Not published.** No finding has an operating threshold."
    with pytest.raises(ChexRadiNetError, match="No finding has an operating threshold"):
        training_results(api_of(interface.host), "run-1")
