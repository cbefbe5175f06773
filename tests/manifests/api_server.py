"""A Kubernetes API server of one's own: etcd and kube-apiserver, no controllers, no nodes."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]
NEEDED = "etcd, kube-apiserver and kubectl; set KUBEBUILDER_ASSETS to the folder it prints"
_START_S = 90


class ApiServer:
    """Running programs, and kubectl as their administrator."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._kubectl = program("kubectl")
        etcd, port = f"http://127.0.0.1:{_free_port()}", _free_port()
        peers = f"http://127.0.0.1:{_free_port()}"
        self._start(
            [program("etcd"), f"--data-dir={folder}/etcd", f"--listen-client-urls={etcd}",
             f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peers}"]
        )  # fmt: skip
        token = secrets.token_hex(16)
        tokens, key = folder / "tokens.csv", folder / "accounts.key"
        tokens.write_text(f"{token},administrator,1,system:masters\n")
        subprocess.run([program("openssl"), "genrsa", "-out", key], capture_output=True, check=True)
        self._start(
            [program("kube-apiserver"), f"--etcd-servers={etcd}", f"--cert-dir={folder}/certs",
             "--bind-address=127.0.0.1", f"--secure-port={port}", f"--token-auth-file={tokens}",
             "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
             "--service-account-issuer=https://kubernetes.default.svc",
             f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}"]
        )  # fmt: skip
        self.port, self.authority = port, folder / "certs" / "apiserver.crt"
        self._config = folder / "kubeconfig"
        self._config.write_text(yaml.safe_dump(_client(f"https://127.0.0.1:{port}", token)))
        self._wait()

    def kubectl(self, *arguments: str, given: object = None, ok: bool = True) -> str:
        """Run kubectl; return what it printed.

        Args:
            *arguments: Arguments of kubectl.
            given: Objects for its standard input, as `-f -` reads them.
            ok: Whether it has to succeed or to fail.
        """
        objects = given if isinstance(given, list) else [given]
        done = subprocess.run(
            [self._kubectl, f"--kubeconfig={self._config}", *arguments],
            input=yaml.safe_dump_all(objects) if given else "",
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is ok, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def stop(self) -> None:
        """End the programs."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)

    def _start(self, command: list[str]) -> None:
        with (self._folder / f"{Path(command[0]).name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _wait(self) -> None:
        """Wait until the server is ready and has its own roles."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            ready = subprocess.run(
                [self._kubectl, f"--kubeconfig={self._config}", "get", "--raw=/readyz"],
                capture_output=True, check=False,
            )  # fmt: skip
            if ready.returncode == 0:
                return
            time.sleep(0.5)
        log = (self._folder / "kube-apiserver.log").read_text(errors="replace")
        pytest.fail(f"kube-apiserver is not ready after {_START_S} s: {log[-2000:]}")


def program(name: str) -> str:
    """Return the path of a program, from KUBEBUILDER_ASSETS or the PATH."""
    found = shutil.which(name, path=os.environ.get("KUBEBUILDER_ASSETS", "")) or shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not there; `setup-envtest use` installs {NEEDED}")
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _client(server: str, token: str) -> Object:
    name = "test"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [
            {"name": name, "cluster": {"server": server, "insecure-skip-tls-verify": True}}
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }


def enforce_quota(server: ApiServer, namespace: str, objects: list[Object]) -> None:
    """Write what a controller would: nothing of the quota is used."""
    for quota in (one for one in objects if one["kind"] == "ResourceQuota"):
        hard = quota["spec"]["hard"]
        status = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
        name = quota["metadata"]["name"]
        server.kubectl(
            "-n", namespace, "patch", "resourcequota", name, "--subresource=status",
            "--type=merge", f"--patch={json.dumps(status)}",
        )  # fmt: skip
