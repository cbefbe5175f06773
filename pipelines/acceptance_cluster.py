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

_POLL_S = 5.0
FIRST_EPOCH = "epoch 1 of"
"""What training logs when its first epoch is done and kept."""

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
    "accelerator_count=0",
    "training_memory=3Gi",
    "ingest_memory=2Gi",
    "heatmap_memory=2Gi",
    "radiomics_memory=2Gi",
)
NIGHTLY_SETTINGS = ("settle_s=0", "shard_size=10", "num_decoders=1", "scoring_memory=2Gi")

PREPARE = """
import sys, tempfile
from pathlib import Path
from chexradinet.phantom import write_phantom
from chexradinet.phantom.dicom import write_phantom_inbox
from chexradinet.store import upload_directory
with tempfile.TemporaryDirectory() as folder:
    write_phantom(Path(folder, "xrays"), 120, 64, seed=0)
    upload_directory(Path(folder, "xrays"), "s3://chexradinet-training/{tag}")
    for night in (1, 2):
        write_phantom_inbox(Path(folder, str(night)), 20, 96, seed=1000 + night)
        upload_directory(Path(folder, str(night)), f"s3://chexradinet-inbox/{tag}/{{night}}")
"""

READ = """
import json
from chexradinet.store import open_store
found = {{}}
models, prefix = open_store("s3://chexradinet-models/{tag}")
found["champion"] = json.loads(models.get(f"{{prefix}}/champion.json"))["digest"]
artifacts, _ = open_store("s3://chexradinet-artifacts/kfp")
for entry in artifacts.list("kfp/chexradinet-training/{run}/evaluate/"):
    if entry.key.endswith("/evaluation/metrics.json"):
        found["mean_auroc"] = json.loads(artifacts.get(entry.key))["test"]["mean_auroc"]
    elif entry.key.endswith("report.html"):
        found["report_bytes"] = entry.size
results, prefix = open_store("s3://chexradinet-results/{tag}")
keys = [entry.key for entry in results.list(prefix + "/")]
found["night_reports"] = sum(key.endswith("report.html") for key in keys)
found["score_files"] = sum(key.endswith(".csv") and "/part-" in key for key in keys)
print("FOUND " + json.dumps(found))
"""

CLEAN = """
from chexradinet.store import open_store
for bucket in ("training", "inbox", "models", "results"):
    store, prefix = open_store(f"s3://chexradinet-{{bucket}}/{tag}")
    for entry in list(store.list(prefix + "/")):
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
        """Return a pod of a stage that has trained an epoch and still runs."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            for name, phase in self.pods(run_id, stage):
                said = self.log(name)
                if phase == "Running" and FIRST_EPOCH in said:
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
