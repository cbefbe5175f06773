"""A training step on several nodes against a real API server, with the account and Role it has.

Trainer's controller is played by the test: it writes the status of the TrainJob, and makes pods as
JobSet names them. Their logs come from a kubelet of the test's own, through the API server.
"""

import json
import logging
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from chexradinet.config.parameters import TrainingPlacement
from chexradinet.dataset import DATASET_HEAD
from chexradinet.errors import ConfigError, Interrupted, TrainingError
from chexradinet.model import BUNDLE_HEAD
from chexradinet.store import FinishedWork
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from chexradinet.training import nodes
from tests.manifests.api_server import ApiServer, enforce_quota, program
from tests.manifests.objects import Object

pytestmark = pytest.mark.cluster

SPACE = "chexradinet"
PLACE = TrainingPlacement(
    num_nodes=2,
    accelerator_count=4,
    node_selector={"nvidia.com/gpu.present": "true"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
)
NAME = "chexradinet-train-0123456789ab"
PROGRAM: Object = {"stage": "train", "work": "0123456789ab", "inputs": {}, "settings": {}}


class Controller:
    """What Trainer, JobSet and Kubernetes' own controllers would do, as far as a step sees it."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def kubectl(self, *arguments: str, given: object = None, ok: bool = True) -> str:
        """Run kubectl in the namespace of the runs."""
        return self._server.kubectl("-n", SPACE, *arguments, given=given, ok=ok)

    def job(self, name: str = NAME) -> Object | None:
        """Return a TrainJob, or None."""
        said = self.kubectl("get", "trainjob", name, "--ignore-not-found", "-o", "yaml")
        found: Object | None = yaml.safe_load(said)
        return found

    def make(self, **more: Any) -> None:  # noqa: ANN401
        """Create the TrainJob as an earlier attempt of a step did."""
        job = nodes.train_job(NAME, PLACE, PROGRAM)
        self.kubectl("create", "-f", "-", given={**job, **more})

    def end(self, name: str, kind: str, message: str = "jobset ended") -> None:
        """Write the condition that ends a TrainJob."""
        condition = {"type": kind, "status": "True", "reason": "Jobs", "message": message}
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        self._patch("trainjob", name, {"conditions": [condition]})

    def pod(self, rank: int, template: Object, node: str | None = "node-a") -> str:
        """Make the pod of a node; return its name."""
        name = f"{NAME}-node-0-{rank}-x"
        labels = {"jobset.sigs.k8s.io/jobset-name": NAME}
        labels["batch.kubernetes.io/job-completion-index"] = str(rank)
        metadata = {"name": name, "labels": labels | template["metadata"]["labels"]}
        spec = template["spec"] | ({"nodeName": node} if node else {})
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.kubectl("create", "-f", "-", given=pod)
        return name

    def pod_status(self, name: str, status: Object) -> None:
        """Write what a kubelet or the scheduler would."""
        self._patch("pod", name, status)

    def collect(self) -> None:
        """Let go of what is being deleted, and delete the pods."""
        self.kubectl("delete", "pod", "--all", "--force", "--grace-period=0")
        for name in self.kubectl("get", "trainjob", "-o", "name").split():
            self.kubectl("delete", name, "--wait=false", "--ignore-not-found")
            patch = '--patch={"metadata": {"finalizers": null}}'
            if self.kubectl("get", name, "--ignore-not-found"):
                self.kubectl("patch", name, "--type=merge", patch)

    def _patch(self, kind: str, name: str, status: Object) -> None:
        body = json.dumps({"status": status})
        self.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", body)


class Kubelet(ThreadingHTTPServer):
    """Answers for the logs of containers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Logs)
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-batch"]
        command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=node-a"]
        subprocess.run(command, capture_output=True, check=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.lines: list[str] = []


class _Logs(BaseHTTPRequestHandler):
    server: Kubelet

    def do_GET(self) -> None:
        """Send the log of any container, with times where they are asked for."""
        assert self.path.startswith(f"/containerLogs/{SPACE}/{NAME}-node-0-"), self.path
        stamped = "timestamps=true" in self.path
        times = [f"2026-01-01T00:00:{n:02}.000000000Z " for n in range(len(self.server.lines))]
        text = "".join(
            f"{time if stamped else ''}{line}\n"
            for time, line in zip(times, self.server.lines, strict=True)
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def kubelet(
    server: ApiServer, with_trainer: list[Object], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kubelet]:
    """Yield a kubelet whose node the server knows, with the overlay applied for its pods."""
    space: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}
    space["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects = [o for o in with_trainer if o["metadata"]["namespace"] == SPACE]
    server.kubectl("apply", "--server-side", "-f", "-", given=[space, *objects])
    enforce_quota(server, SPACE, objects)
    with Kubelet(tmp_path_factory.mktemp("kubelet")) as started:
        threading.Thread(target=started.serve_forever, args=(0.02,), daemon=True).start()
        node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}}
        server.kubectl("apply", "--server-side", "-f", "-", given=node)
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": started.server_address[1]}},
        }
        body = json.dumps({"status": status})
        server.kubectl(
            "patch", "node", "node-a", "--subresource=status", "--type=merge", "-p", body
        )
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def template(with_trainer: list[Object]) -> Object:
    """Return the pod template of the TrainingRuntime."""
    (runtime,) = [o for o in with_trainer if o["kind"] == "TrainingRuntime"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    found: Object = job["template"]["spec"]["template"]
    return found


@pytest.fixture
def controller(server: ApiServer, kubelet: Kubelet) -> Iterator[Controller]:
    """Yield the controllers; no TrainJob is there before or after."""
    kubelet.lines = []
    found = Controller(server)
    yield found
    found.collect()


@pytest.fixture
def account(
    server: ApiServer, controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Return a function that gives this process the token of an account, as a pod has it."""
    folder = tmp_path / "account"
    folder.mkdir()
    monkeypatch.setattr(nodes, "SERVICE_ACCOUNT", folder)
    monkeypatch.setattr(nodes, "POLL_S", 0.05)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))

    def become(name: str) -> None:
        (folder / "token").write_text(controller.kubectl("create", "token", name).strip())
        (folder / "ca.crt").write_bytes(server.authority.read_bytes())
        (folder / "namespace").write_text(SPACE)

    become("chexradinet-runner")
    return become


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread during the block; fail if it fails."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised below
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        if faults:
            raise faults[0]


def wait_for(controller: Controller, name: str) -> Object:
    while (job := controller.job(name)) is None:
        pass
    return job


def test_a_step_shares_its_inputs_and_takes_the_model_from_the_store(
    controller: Controller,
    account: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setattr(nodes, "_require_bucket", lambda _: None)
    for name, head in (("dataset", DATASET_HEAD), ("made", BUNDLE_HEAD)):
        (tmp_path / name).mkdir()
        (tmp_path / name / head.name).write_text(f'{{"kind": "{head.kind}"}}')
    seen: list[Object] = []

    def play() -> None:
        seen.append(wait_for(controller, NAME))
        told = json.loads(seen[0]["spec"]["trainer"]["args"][0])
        fetched = tmp_path / "fetched"
        assert FinishedWork("dataset", told["inputs"]["dataset"], reuse=True).take(
            fetched, DATASET_HEAD
        )
        FinishedWork(told["stage"], told["work"], reuse=True).keep(tmp_path / "made")
        controller.end(NAME, "Complete")

    inputs = {"dataset": (tmp_path / "dataset", "digest")}
    with meanwhile(play):
        nodes.on_nodes(PLACE, "train", "0123456789ab", inputs, {}, tmp_path / "model")
    made, taken = ((tmp_path / name / BUNDLE_HEAD.name).read_text() for name in ("made", "model"))
    assert taken == made
    (job,) = seen
    assert job["spec"]["runtimeRef"]["name"] == nodes.RUNTIME
    assert job["spec"]["trainer"]["numNodes"] == 2
    # The form that Trainer 2.0 takes, after two that its definition does not know.
    (override,) = job["spec"]["podSpecOverrides"]
    assert override["nodeSelector"] == PLACE.node_selector
    assert override["tolerations"] == PLACE.tolerations
    left = controller.job()
    assert left is None or "deletionTimestamp" in left["metadata"]


def test_a_train_job_that_leaves_no_model_is_an_error(
    controller: Controller,
    account: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "store"))
    monkeypatch.setattr(nodes, "_require_bucket", lambda _: None)

    def play() -> None:
        wait_for(controller, NAME)
        controller.end(NAME, "Complete")

    with meanwhile(play), pytest.raises(TrainingError, match="complete, but its model is not"):
        nodes.on_nodes(PLACE, "train", "0123456789ab", {}, {}, tmp_path / "model")


def test_the_pod_of_a_node_is_admitted_where_pods_are_restricted(
    controller: Controller, template: Object
) -> None:
    name = controller.pod(0, template, node=None)
    found = yaml.safe_load(controller.kubectl("get", "pod", name, "-o", "yaml"))
    assert found["spec"]["serviceAccountName"] == "chexradinet-node"
    assert not [one for one in found["spec"]["volumes"] if "projected" in one]


def test_progress_is_what_the_first_node_says_each_line_once(
    controller: Controller,
    account: Callable[[str], None],
    kubelet: Kubelet,
    template: Object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    controller.make()
    for rank in (0, 1):
        controller.pod(rank, template)
    kubelet.lines = ["epoch 1 of 2"]

    def said() -> list[str]:
        return [one.getMessage() for one in caplog.records if "node 0" in one.getMessage()]

    def play() -> None:
        while not said():
            pass
        kubelet.lines = ["epoch 1 of 2", "epoch 2 of 2"]
        while len(said()) < 2:
            pass
        controller.end(NAME, "Complete")

    with meanwhile(play):
        nodes.Cluster().follow(NAME)
    assert said() == ["node 0: epoch 1 of 2", "node 0: epoch 2 of 2"]


def test_a_failure_names_the_pod_that_failed_first_and_the_end_of_its_log(
    controller: Controller, account: Callable[[str], None], kubelet: Kubelet, template: Object
) -> None:
    controller.make()
    kubelet.lines = ["loading", "cannot allocate"]
    for rank, (reason, code, second) in enumerate((("Error", 1, 9), ("OOMKilled", 137, 5))):
        name = controller.pod(rank, template)
        ended = {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T00:00:0{second}Z"}
        container = {"name": "node", "image": "x", "imageID": "", "ready": False}
        container |= {"restartCount": 0, "state": {"terminated": ended}}
        controller.pod_status(name, {"phase": "Failed", "containerStatuses": [container]})
    controller.end(NAME, "Failed", "jobset failed due to one or more job failures")
    with pytest.raises(TrainingError) as raised:
        nodes.Cluster().follow(NAME)
    assert str(raised.value) == (
        f"TrainJob {NAME} failed: jobset failed due to one or more job failures; "
        f"pod {NAME}-node-0-1-x ended first (OOMKilled, exit code 137):\n"
        "    loading\n    cannot allocate"
    )


def test_a_step_that_is_stopped_deletes_its_train_job(
    controller: Controller, account: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_require_bucket", lambda _: None)

    def play() -> None:
        wait_for(controller, NAME)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(play), pytest.raises(Interrupted, match="SIGTERM ended the training"):
        nodes.on_nodes(PLACE, "train", "0123456789ab", {}, {}, Path("model"))
    left = controller.job()
    # Kubernetes removes it once its pods have ended, and a retry waits for that.
    assert left is not None
    assert left["metadata"]["finalizers"] == ["foregroundDeletion"]


def test_a_retry_follows_the_train_job_that_is_there(
    controller: Controller, account: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    controller.make()
    before = controller.job()
    nodes.Cluster().start(nodes.train_job(NAME, PLACE, PROGRAM), nodes.placements(PLACE))
    assert controller.job() == before
    assert f"TrainJob {NAME} of an earlier attempt is there" in caplog.text


def test_a_retry_replaces_a_train_job_that_failed_once_it_is_gone(
    controller: Controller, account: Callable[[str], None]
) -> None:
    controller.make()
    former = wait_for(controller, NAME)
    controller.end(NAME, "Failed")

    def play() -> None:
        while "deletionTimestamp" not in wait_for(controller, NAME)["metadata"]:
            pass
        controller.collect()

    with meanwhile(play):
        nodes.Cluster().start(nodes.train_job(NAME, PLACE, PROGRAM), nodes.placements(PLACE))
    assert wait_for(controller, NAME)["metadata"]["uid"] != former["metadata"]["uid"]


def test_a_train_job_that_somebody_deletes_ends_the_step(
    account: Callable[[str], None],
) -> None:
    with pytest.raises(TrainingError, match=f"TrainJob {NAME} was deleted; run again"):
        nodes.Cluster().follow(NAME)


def test_what_keeps_nodes_from_starting_is_logged_once(
    controller: Controller,
    account: Callable[[str], None],
    template: Object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    controller.make()
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "refused", "namespace": SPACE},
        "involvedObject": {"kind": "Job", "name": f"{NAME}-node-0", "namespace": SPACE},
        "type": "Warning",
        "reason": "FailedCreate",
        "message": "pods is forbidden: exceeded quota: chexradinet",
    }
    controller.kubectl("create", "-f", "-", given=event)

    def waits() -> list[str]:
        return [one.getMessage() for one in caplog.records if "waits" in one.getMessage()]

    def play() -> None:
        while not waits():
            pass
        name = controller.pod(0, template, node=None)
        condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes fit"}
        controller.pod_status(name, {"conditions": [condition]})
        while len(waits()) < 2:
            pass
        controller.end(NAME, "Complete")

    with meanwhile(play):
        nodes.Cluster().follow(NAME)
    controller.kubectl("delete", "event", "refused")
    assert waits() == [
        f"TrainJob {NAME} waits: pods is forbidden: exceeded quota: chexradinet",
        f"TrainJob {NAME} waits: pod {NAME}-node-0-0-x: 0/3 nodes fit",
    ]


def test_a_quota_without_room_for_the_train_job_is_named(
    server: ApiServer, controller: Controller, account: Callable[[str], None]
) -> None:
    quota: Object = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
    quota["spec"] = {"hard": {"count/trainjobs.trainer.kubeflow.org": "0"}}
    controller.kubectl("create", "-f", "-", given=quota)
    try:
        enforce_quota(server, SPACE, [quota])
        with pytest.raises(TrainingError, match=r"no room for another TrainJob: .*exceeded quota"):
            nodes.Cluster().start(nodes.train_job(NAME, PLACE, PROGRAM), [{}])
    finally:
        controller.kubectl("delete", "resourcequota", "none")


def test_a_cluster_without_trainer_is_refused(
    account: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "VERSION", "v9")
    with pytest.raises(ConfigError, match=r"the cluster has no trainer.kubeflow.org/v9: install"):
        nodes.Cluster().ask("get", "trainingruntimes", nodes.RUNTIME)


def test_a_namespace_without_the_runtime_is_refused(
    controller: Controller, account: Callable[[str], None], with_trainer: list[Object]
) -> None:
    (runtime,) = [o for o in with_trainer if o["kind"] == "TrainingRuntime"]
    controller.kubectl("delete", "trainingruntime", nodes.RUNTIME)
    try:
        with pytest.raises(ConfigError, match="there is no TrainingRuntime chexradinet-training"):
            nodes.Cluster().ask("get", "trainingruntimes", nodes.RUNTIME)
    finally:
        controller.kubectl("apply", "--server-side", "-f", "-", given=runtime)


def test_an_account_without_the_rights_is_refused(account: Callable[[str], None]) -> None:
    account("chexradinet-nightly")
    with pytest.raises(ConfigError, match=r"may not get trainingruntimes .* as chexradinet-runner"):
        nodes.Cluster().ask("get", "trainingruntimes", nodes.RUNTIME)


def test_a_field_that_trainer_does_not_know_is_no_silent_loss(
    account: Callable[[str], None],
) -> None:
    job = nodes.train_job(NAME, PLACE, PROGRAM)
    with pytest.raises(TrainingError, match=r"unknown field .*spec.runtimePatches"):
        nodes.Cluster().start(job, nodes.placements(PLACE)[:1])
