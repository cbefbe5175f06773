"""The compiled nightly pipeline, run here as it is uploaded."""

import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.compile import compile_nightly
from pipelines.documents import tasks
from pipelines.parameters import NIGHTLY, load_compiled, parse_settings
from pipelines.run import LocalRunError, run_locally
from tests.nightly_world import FINDINGS, World, make_world
from tests.serving import serving


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled nightly pipeline; compiling lints it."""
    return compile_nightly(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def pushed() -> Iterator[tuple[str, list[str]]]:
    """Return the address of a gateway and what was pushed to it."""
    bodies: list[str] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            bodies.append(self.rfile.read(length).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:  # noqa: ANN401 - nothing to say
            return

    with serving(HTTPServer(("127.0.0.1", 0), Gateway)) as server:
        yield f"http://127.0.0.1:{server.server_port}", bodies


def run(compiled: Path, world: World, folder: Path, gateway: str) -> None:
    """Run the compiled pipeline on a world."""
    words = [
        f"inbox_uri={world.inbox}", f"models_uri={world.root / 'models'}",
        f"results_uri={world.results_uri}", "settle_s=0", "shard_size=4",
    ]  # fmt: skip
    arguments = parse_settings(load_compiled(compiled), words)
    environment = {"PUSHGATEWAY_URL": gateway, "OMP_NUM_THREADS": "1"}
    run_locally(compiled, arguments, folder, Console(file=io.StringIO()), environment)


def test_no_step_may_be_served_from_the_cache_and_none_loops_in_the_exit_handler(
    compiled: Path,
) -> None:
    document = load_compiled(compiled)
    assert document["pipelineInfo"]["name"] == NIGHTLY
    steps = {name: task for _, name, task in tasks(document)}
    assert {"plan", "score", "collect", "upload", "report-outcome"} <= set(steps)
    for name in ("plan", "score", "collect", "upload", "report-outcome"):
        assert not steps[name].get("cachingOptions", {}).get("enableCache")
    policy = steps["report-outcome"]["triggerPolicy"]
    assert policy["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


@pytest.mark.slow
def test_the_compiled_pipeline_scores_a_night_and_then_has_nothing_to_do(
    compiled: Path, pushed: tuple[str, list[str]], tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world", num_png=6)
    gateway, bodies = pushed
    run(compiled, world, tmp_path / "first", gateway)
    assert len(world.rows("part-")) == 6 * len(FINDINGS)
    assert any("chexradinet_nightly_images_scored 6.0" in body for body in bodies)
    assert "chexradinet_nightly_success 1.0" in bodies[-1]
    before = world.results()
    run(compiled, world, tmp_path / "second", gateway)
    assert world.results() == before
    lease = json.loads((Path(world.results_uri) / "ledger" / "lease.json").read_text("utf-8"))
    assert lease["run_id"] == ""


@pytest.mark.slow
def test_a_run_that_fails_says_so_to_telemetry_and_gives_the_lease_back(
    compiled: Path, pushed: tuple[str, list[str]], tmp_path: Path
) -> None:
    world = make_world(tmp_path / "world", num_png=1)
    gateway, bodies = pushed
    next((world.root / "models").glob("*/weights.safetensors")).write_bytes(b"")
    with pytest.raises(LocalRunError, match="was changed"):
        run(compiled, world, tmp_path / "run", gateway)
    assert "chexradinet_nightly_success 0.0" in bodies[-1]
    assert "last_success" not in bodies[-1]
    lease = json.loads((Path(world.results_uri) / "ledger" / "lease.json").read_text("utf-8"))
    assert lease["run_id"] == ""
