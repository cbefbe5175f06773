"""Training on several nodes: a TrainJob of Kubeflow Trainer v2 that is started, followed and ended.

The TrainingRuntime in `manifests/options/trainer` says what the pod of a node is; the TrainJob adds
what one training needs. Each node runs `training.node`. See ADR 0027.
"""

import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from urllib3 import Retry
from urllib3.exceptions import HTTPError

from chexradinet.config.parameters import TrainingPlacement
from chexradinet.errors import ChexRadiNetError, ConfigError, Interrupted, TrainingError
from chexradinet.model import BUNDLE_HEAD
from chexradinet.parallel import on_signals
from chexradinet.store import FinishedWork
from chexradinet.store.uri import CHECKPOINT_VARIABLE, parse_uri

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
RUNTIME = "chexradinet-training"
"""Name of the TrainingRuntime."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod has its account's token, the authority of the API server and its namespace."""
POLL_S = 5.0
_GATHER_S = 3600
"""Seconds that nodes wait for one another; a cluster may have to add some first."""
_LINES_SHOWN = 20
_OPTION = "add manifests/options/trainer to the overlay"

Json = dict[str, Any]
_log = logging.getLogger(__name__)


def on_nodes(
    place: TrainingPlacement,
    stage: str,
    work: str,
    inputs: Mapping[str, tuple[Path, str]],
    settings: Json,
    target: Path,
) -> None:
    """Train on several nodes, and put the model at `target`.

    Args:
        place: Number of nodes, and what each of them has.
        stage: `train` or `retrain`.
        work: Digest by which the model is kept as finished work of the stage.
        inputs: Directory and digest of each input, by its name: `dataset`, `bundle`, `features-0`.
        settings: Other arguments of `train_here` or `retrain_here` by name, JSON-ready.
        target: Bundle directory to make.

    Raises:
        ConfigError: the environment or the cluster lacks something; the message names it.
        TrainingError: the TrainJob failed, was deleted, or left no model.
        Interrupted: this process was asked to end; the TrainJob is deleted.
        StoreError: the store does not take the inputs.
    """
    _require_bucket(place.num_nodes)
    cluster = Cluster()
    cluster.ask("get", "trainingruntimes", RUNTIME)
    for name, (folder, digest) in inputs.items():
        FinishedWork(name, digest, reuse=True).share(folder)
    digests = {name: digest for name, (_, digest) in inputs.items()}
    program = {"stage": stage, "work": work, "inputs": digests, "settings": settings}
    name = f"chexradinet-{stage}-{work[:12]}"
    with on_signals(_end, signal.SIGTERM, signal.SIGINT):
        try:
            cluster.start(train_job(name, place, program), placements(place))
            cluster.follow(name)
        finally:
            with contextlib.suppress(ChexRadiNetError):
                cluster.delete(name)
    if not FinishedWork(stage, work, reuse=True).take(target, BUNDLE_HEAD):
        raise TrainingError(
            f"TrainJob {name} is complete, but its model is not below {CHECKPOINT_VARIABLE}; check "
            "that the ConfigMap chexradinet-run and the training identity are those of the step"
        )


def _require_bucket(num_nodes: int) -> None:
    given = os.environ.get(CHECKPOINT_VARIABLE, "").strip()
    if not given or parse_uri(given).bucket is None:
        raise ConfigError(
            f"num_nodes is {num_nodes}, and {CHECKPOINT_VARIABLE} is {given!r}; nodes share only a "
            "bucket: set it to s3://bucket/folder in the ConfigMap chexradinet-run"
        )


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # until the TrainJob is deleted
    raise Interrupted(
        f"{signal.Signals(number).name} ended the training, and its TrainJob is deleted; the nodes "
        f"keep their state below {CHECKPOINT_VARIABLE}: run the same again to continue"
    )


def train_job(name: str, place: TrainingPlacement, program: Json) -> Json:
    """Return the TrainJob of one training, without what chooses its nodes."""
    amounts, processes = {"memory": place.training_memory}, place.num_processes // place.num_nodes
    if place.accelerator_type and place.accelerator_count:
        amounts[place.accelerator_type] = str(processes)
    launcher = ["python3", "-m", "torch.distributed.run", f"--rdzv-conf=timeout={_GATHER_S}"]
    trainer = {
        "image": place.worker_image,
        "command": [*launcher, "-m", "chexradinet.training.node"],
        # Kubernetes would expand `$(NAME)`.
        "args": [json.dumps(program).replace("$", "\\u0024")],
        "numNodes": place.num_nodes,
        "numProcPerNode": processes,
        "resourcesPerNode": {"requests": {"cpu": "1", **amounts}, "limits": amounts},
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "chexradinet"}},
        "spec": {"runtimeRef": {"kind": "TrainingRuntime", "name": RUNTIME}, "trainer": trainer},
    }


def placements(place: TrainingPlacement) -> list[Json]:
    """Return node selector and tolerations as releases 2.2, 2.1 and 2.0 of Trainer take them."""
    chosen = {"nodeSelector": place.node_selector, "tolerations": place.tolerations}
    pod = {name: value for name, value in chosen.items() if value}
    job, target = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}, "targetJobs"
    runtime = {"template": {"spec": {"replicatedJobs": [job]}}}
    node = {target: [{"name": "node"}]}
    return (
        [
            {
                "runtimePatches": [
                    {"manager": "chexradinet.io/step", "trainingRuntimeSpec": runtime}
                ]
            },
            {"podTemplateOverrides": [{**node, "spec": pod}]},
            {"podSpecOverrides": [{**node, **pod}]},
        ]
        if pod
        else [{}]
    )


class Cluster:
    """The Kubernetes API, as the account of the step's pod sees it."""

    def __init__(self) -> None:
        # Here, because only the image is sure to have it, and it takes half a second.
        from kubernetes import client, config
        from kubernetes.config.incluster_config import InClusterConfigLoader

        configuration = client.Configuration()
        files = [str(SERVICE_ACCOUNT / name) for name in ("token", "ca.crt")]
        try:
            self._namespace = (SERVICE_ACCOUNT / "namespace").read_text("utf-8").strip()
            InClusterConfigLoader(*files).load_and_set(configuration)
        except (OSError, config.ConfigException) as error:
            wanted = "num_nodes above 1 needs a pod on Kubernetes with its account's token"
            raise ConfigError(f"{wanted}: {error}") from error
        configuration.retries = Retry(8, backoff_factor=1, status_forcelist=(429, 502, 503, 504))
        api = client.ApiClient(configuration)
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._error = client.ApiException
        self._newest_line = self._told = ""

    def ask(self, verb: str, plural: str, *name: str, **more: Any) -> Json:  # noqa: ANN401
        """Get, create or delete an object of Trainer.

        Raises:
            ConfigError: Trainer, its runtime or the account's rights are missing.
            TrainingError: the API refuses it for another reason, or cannot be reached.
        """
        call = getattr(self._custom, f"{verb}_namespaced_custom_object")
        try:
            found: Json = call(GROUP, VERSION, self._namespace, plural, *name, **more)
        except self._error as error:
            raise _refusal(error.status, str(error.body), f"{verb} {plural}") from error
        except HTTPError as error:
            raise TrainingError(f"the Kubernetes API cannot be reached: {error}") from error
        return found

    def start(self, job: Json, placements: list[Json]) -> None:
        """Create a TrainJob, unless an earlier attempt did; one that failed is replaced."""
        name = job["metadata"]["name"]
        while former := self._find(name):
            if former["metadata"].get("deletionTimestamp") is None:
                if _ended(former)[0] != "Failed":
                    _log.info("TrainJob %s of an earlier attempt is there; following it", name)
                    return
                self.delete(name)
            time.sleep(POLL_S)
        for number, placement in enumerate(placements, 1):
            body = {**job, "spec": {**job["spec"], **placement}}
            try:
                self.ask("create", "trainjobs", body=body, field_validation="Strict")
                break
            except _RefusedError as error:
                if error.status == 409:  # an answer was lost, and the request sent again
                    break
                if "unknown field" not in str(error) or number == len(placements):
                    raise
        _log.info("TrainJob %s is created in namespace %s", name, self._namespace)

    def follow(self, name: str) -> None:
        """Pass on what the first node logs until a TrainJob is complete.

        Raises:
            TrainingError: it failed, or is gone.
        """
        while job := self._find(name):
            label = f"jobset.sigs.k8s.io/jobset-name={name}"
            pods = self._listed(self._core.list_namespaced_pod, label_selector=label)
            self._pass_on(pods)
            kind, message = _ended(job)
            if kind == "Complete":
                return
            if kind == "Failed":
                raise TrainingError(f"TrainJob {name} failed: {message}{self._failure(pods)}")
            obstacle = _obstacle(pods) if pods else self._warning(name)
            if obstacle and obstacle != self._told:
                _log.warning("TrainJob %s waits: %s", name, obstacle)
            self._told = obstacle
            time.sleep(POLL_S)
        raise TrainingError(f"TrainJob {name} was deleted; run again to continue from its state")

    def delete(self, name: str) -> None:
        """Delete a TrainJob; it is gone once its pods are."""
        self.ask("delete", "trainjobs", name, propagation_policy="Foreground")

    def _find(self, name: str) -> Json | None:
        try:
            return self.ask("get", "trainjobs", name)
        except _RefusedError as error:
            if error.status == 404:
                return None
            raise

    def _listed(self, call: Callable[..., Any], **selector: str) -> list[Any]:
        with contextlib.suppress(self._error, HTTPError):
            return list(call(self._namespace, **selector).items)
        return []

    def _log_of(self, pod: Any, **more: Any) -> list[str]:  # noqa: ANN401
        with contextlib.suppress(self._error, HTTPError):
            text = self._core.read_namespaced_pod_log(pod.metadata.name, self._namespace, **more)
            return list(text.splitlines())
        return []

    def _pass_on(self, pods: list[Any]) -> None:
        index = "batch.kubernetes.io/job-completion-index"
        for pod in (one for one in pods if one.metadata.labels.get(index) == "0"):
            for line in self._log_of(pod, timestamps=True, tail_lines=1000):
                time_of_line, _, said = line.partition(" ")
                if time_of_line > self._newest_line:
                    self._newest_line = time_of_line
                    _log.info("node 0: %s", said)

    def _failure(self, pods: list[Any]) -> str:
        """Return which pod failed first, why, and the end of its log."""
        ended = [
            (container.state.terminated, pod)
            for pod in pods
            for container in pod.status.container_statuses or ()
            if container.state.terminated is not None and container.state.terminated.exit_code
        ]
        if not ended:
            return "; no failed pod of it is left"
        state, pod = min(ended, key=lambda one: one[0].finished_at)
        said = "".join(f"\n    {line}" for line in self._log_of(pod, tail_lines=_LINES_SHOWN))
        why = f"{state.reason}, exit code {state.exit_code}"
        return f"; pod {pod.metadata.name} ended first ({why}):{said}"

    def _warning(self, name: str) -> str:
        """Return why no pod is made, such as an exhausted quota."""
        which = f"involvedObject.kind=Job,involvedObject.name={name}-node-0,type=Warning"
        events = self._listed(self._core.list_namespaced_event, field_selector=which)
        return str(events[-1].message) if events else ""


def _ended(job: Json) -> tuple[str, str]:
    """Return `Complete` or `Failed` with a message, or two empty texts for neither."""
    for one in job.get("status", {}).get("conditions", []):
        if one["type"] in ("Complete", "Failed") and one["status"] == "True":
            return one["type"], one.get("message", "")
    return "", ""


def _obstacle(pods: list[Any]) -> str:
    """Return why a pod does not start; empty if all do."""
    for pod in pods:
        for condition in pod.status.conditions or ():
            if (condition.type, condition.status) == ("PodScheduled", "False"):
                return f"pod {pod.metadata.name}: {condition.message}"
        for container in pod.status.container_statuses or ():
            waiting = container.state.waiting
            if waiting is not None and waiting.reason != "ContainerCreating":
                return f"pod {pod.metadata.name}: {waiting.reason} {waiting.message or ''}"
    return ""


def _refusal(status: int, body: str, asked: str) -> ChexRadiNetError:
    """Return what an answer of the API means."""
    try:
        said = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        said = body.strip()
    if status == 404 and "page not found" in said:
        release = "install Kubeflow Trainer 2.0 or later, or set num_nodes to 1"
        return ConfigError(f"the cluster has no {GROUP}/{VERSION}: {release}")
    if status == 404 and "trainingruntimes" in asked:
        return ConfigError(
            f"there is no TrainingRuntime {RUNTIME} in the run's namespace; {_OPTION}"
        )
    if status == 403 and "exceeded quota" in said:
        return TrainingError(f"the namespace has no room for another TrainJob: {said}")
    if status in (401, 403):
        account = "submit the run as chexradinet-runner"
        return ConfigError(f"the step may not {asked} ({said}); {account}, and {_OPTION}")
    return _RefusedError(status, f"the Kubernetes API does not {asked}: {said}")


class _RefusedError(TrainingError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
