"""What the acceptance asks of a cluster and its API server, and its scripts for the store."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console

from chexradinet.errors import ChexRadiNetError
from pipelines.api import TIMEOUT_S, Api, explained
from pipelines.cluster import Unknown, kubectl
from pipelines.follow import follow
from pipelines.outputs import Output, outputs_of, read_file

_POLL_S = 5.0
FIRST_EPOCH, KEPT, RESUMED = "epoch 1 of", "is kept in", "training continues from step-"
"""What training logs when its first epoch is done, its state is kept, and it continues from it."""

NIGHT_XRAYS = 20
"""X-rays in the inbox of each night."""

TRAINING_SETTINGS = (
    "data_format=csv",
    "image_side=64",
    "backbone=resnet18-narrow",
    "map_stride=8",
    "epochs=8",
    "rounds=2",
    "round_epochs=1",
    "num_shards=2",
    "bootstrap_samples=100",
    "min_improvement=-1",
    "allow_missing_thresholds=true",
    "accelerator_count=0",
    "training_memory=3Gi",
    "ingest_memory=2Gi",
    "heatmap_memory=2Gi",
    "radiomics_memory=2Gi",
)
NIGHTLY_SETTINGS = ("settle_s=0", "shard_size=10", "num_decoders=1", "scoring_memory=2Gi")

PREPARE = """
import tempfile
from pathlib import Path
from chexradinet.phantom import write_phantom
from chexradinet.phantom import write_phantom_inbox
from chexradinet.store import upload_directory
with tempfile.TemporaryDirectory() as folder:
    write_phantom(Path(folder, "xrays"), 120, 64, seed=0)
    upload_directory(Path(folder, "xrays"), "s3://chexradinet-training/{tag}")
    for night in (1, 2):
        write_phantom_inbox(Path(folder, str(night)), {night_xrays}, 96, seed=1000 + night)
        upload_directory(Path(folder, str(night)), f"s3://chexradinet-inbox/{tag}/{{night}}")
"""

CLEAN = """
from chexradinet.store import open_store
for uri in {uris}:
    store, prefix = open_store(uri)
    for entry in list(store.list(prefix)):
        store.delete(entry.key)
"""


@dataclass(frozen=True)
class Installation:
    """An installation under test."""

    api: Api
    namespace: str
    """Namespace of the runs."""

    def pods(self, run_id: str, stage: str) -> list[tuple[str, str]]:
        """Return name and phase of the pods of a stage."""
        chosen = f"pipeline/runid={run_id},app.kubernetes.io/component={stage}"
        place = ("--namespace", self.namespace, "--selector", chosen, "--output", "json")
        found = kubectl("get", "pods", *place)
        pods = [] if isinstance(found, Unknown) else json.loads(found)["items"]
        return [(pod["metadata"]["name"], pod["status"].get("phase", "")) for pod in pods]

    def log(self, pod: str) -> str:
        """Return the log of a pod's step; empty if there is none."""
        found = kubectl("logs", pod, "--namespace", self.namespace, "--container", "main")
        return "" if isinstance(found, Unknown) else found

    def running_pod(self, run_id: str, stage: str, within_s: float = 3600.0) -> str:
        """Return a running pod of a stage that has trained an epoch and kept its state."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            for name, phase in self.pods(run_id, stage):
                said = self.log(name)
                if phase == "Running" and FIRST_EPOCH in said and KEPT in said:
                    return name
            with explained(self.api.endpoint, "asking for the run's state"):
                run = self.api.runs.run_service_get_run(run_id, _request_timeout=TIMEOUT_S)
            if str(run.state) in ("FAILED", "CANCELED", "SUCCEEDED"):
                follow(self.api, run_id, Console(quiet=True))  # raises with what failed
                raise ChexRadiNetError(f"{stage} ended before its pod could be deleted")
            time.sleep(_POLL_S / 2)
        raise ChexRadiNetError(f"no pod of {stage} within {within_s:.0f} s")

    def new_run(
        self,
        wanted: Callable[[Any], bool],
        since: float,
        within_s: float = 600.0,
    ) -> Any:  # noqa: ANN401
        """Return the first run that is wanted, when it is there."""
        while time.time() < since + within_s:
            with explained(self.api.endpoint, "listing runs"):
                answer = self.api.runs.run_service_list_runs(
                    namespace=self.api.endpoint.namespace,
                    sort_by="created_at desc",
                    page_size=20,
                    _request_timeout=TIMEOUT_S,
                )
            for run in answer.runs or []:
                if wanted(run):
                    return run
            time.sleep(_POLL_S)
        raise ChexRadiNetError(f"no run was started within {within_s:.0f} s")

    def object(self, kind: str, name: str) -> Any:  # noqa: ANN401
        """Return an object."""
        place = ("--namespace", self.namespace, "--output", "json")
        found = kubectl("get", kind, name, *place)
        if isinstance(found, Unknown):
            raise ChexRadiNetError(f"{kind} {name}: {found}")
        return json.loads(found)

    def apply(self, manifest: dict[str, Any]) -> None:
        """Create or change an object."""
        text = yaml.safe_dump(manifest)
        found = kubectl("apply", "--namespace", self.namespace, "-f", "-", given=text)
        if isinstance(found, Unknown):
            raise ChexRadiNetError(f"{manifest['kind']} {manifest['metadata']['name']}: {found}")


def training_results(api: Api, run_id: str) -> str:
    """Return what a training's evaluation shows in the web interface.

    Raises:
        ChexRadiNetError: metrics, ROC or report are missing or not as they must be, or the model
            was not published.
    """
    decision = read_file(api, _outputs(api, run_id, "publish", "decision")["decision"]).decode()
    if not decision.startswith("**Published.**"):
        raise ChexRadiNetError(f"the model was not published: {decision}")
    found = _outputs(api, run_id, "evaluate", "metrics", "roc", "report")
    auroc = found["metrics"].properties.get("test_mean_auroc")
    points = found["roc"].properties.get("confidenceMetrics", {}).get("list", [])
    curve = [(point["falsePositiveRate"], point["recall"]) for point in points]
    if curve != sorted(curve) or {(0, 0), (1, 1)} - {*curve[:1], *curve[-1:]}:
        raise ChexRadiNetError(f"the ROC does not rise from (0, 0) to (1, 1): {curve}")
    if auroc is None:
        raise ChexRadiNetError("the metrics have no test_mean_auroc")
    page = _page_size(api, found["report"])
    return f"published; test AUROC {auroc:.3f}, ROC of {len(curve)} points, report of {page} bytes"


def night_results(api: Api, run_id: str) -> str:
    """Return what a night's collection shows in the web interface.

    Raises:
        ChexRadiNetError: an X-ray was not scored, or the report is missing.
    """
    found = _outputs(api, run_id, "collect", "metrics", "night_report")
    scored = found["metrics"].properties.get("images_scored")
    if scored != NIGHT_XRAYS:
        raise ChexRadiNetError(f"{scored} of {NIGHT_XRAYS} X-rays were scored in run {run_id}")
    return f"{scored:.0f} X-rays scored, report of {_page_size(api, found['night_report'])} bytes"


def _outputs(api: Api, run_id: str, step: str, *names: str) -> dict[str, Output]:
    found = {one.name: one for one in outputs_of(api, run_id) if one.step == step}
    if missing := set(names) - set(found):
        raise ChexRadiNetError(f"{step} of run {run_id} lacks {sorted(missing)}")
    return found


def _page_size(api: Api, output: Output) -> int:
    page = read_file(api, output)
    if not page.lower().startswith(b"<!doctype html>"):
        raise ChexRadiNetError(f"{output.uri} is not a page: {page[:80]!r}")
    return len(page)
