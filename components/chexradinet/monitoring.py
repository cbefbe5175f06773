"""A run's figures for Prometheus, pushed to a Pushgateway: gauges that speak of the last batch.

A batch job ends before anything could scrape it, so it pushes. Only what a push carries is
replaced there: a failed run carries no `..._last_success_timestamp_seconds`, and that one stays.
"""

import functools
import http.client
import logging
import os
import subprocess
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chexradinet.run_figures import Figure as Figure
from chexradinet.run_figures import NightlyTelemetry as NightlyTelemetry
from chexradinet.run_figures import RunTelemetry as RunTelemetry
from chexradinet.run_figures import TrainingTelemetry as TrainingTelemetry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

ADDRESS_VARIABLE = "PUSHGATEWAY_URL"
"""Environment variable with the Pushgateway's address, such as `http://pushgateway:9091`."""

PUSH_TIMEOUT_S = 5.0
"""Longest wait for the Pushgateway, in seconds: a run never waits longer for its telemetry."""

JOB = "chexradinet"
"""Grouping key `job` of every push; the others are `pipeline` and, of durations, `stage`."""

_LOG = logging.getLogger(__name__)


def registries_of(telemetry: RunTelemetry) -> "Iterator[tuple[dict[str, str], CollectorRegistry]]":
    """Yield what is pushed, the run's figures and each stage's, behind its grouping key."""
    key = {"pipeline": telemetry.pipeline}
    yield key, _registry(telemetry.pipeline, telemetry.figures())
    for stage, figure in telemetry.stage_figures():
        yield {**key, "stage": stage}, _registry(telemetry.pipeline, [figure])


def _registry(pipeline: str, figures: Iterable[Figure]) -> "CollectorRegistry":
    """Return a new registry that holds figures, named `chexradinet_<pipeline>_…`."""
    # Here, not above: training and scoring also run where no Prometheus client is installed.
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()
    for figure in figures:
        name = f"chexradinet_{pipeline}_{figure.name}"
        gauge = Gauge(name, figure.meaning, figure.labels, registry=registry)
        for labels, value in figure.values.items():
            (gauge.labels(*labels) if labels else gauge).set(value)
    return registry


def push(telemetry: RunTelemetry) -> bool:
    """Send a run's figures to the Pushgateway of the environment; return whether they arrived.

    Never fails the run: without an address nothing happens, and a gateway that is unreachable, slow
    or refuses is a warning in the log.
    """
    address = os.environ.get(ADDRESS_VARIABLE, "").strip()
    if not address:
        _say_absent()
        return False
    try:
        host = _host_of(address)
        from prometheus_client import pushadd_to_gateway

        for key, registry in registries_of(telemetry):
            pushadd_to_gateway(address, JOB, registry, key, timeout=PUSH_TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError, ImportError) as error:
        _LOG.warning(
            "telemetry was not pushed (%s: %s); the run goes on. Check %s, that the gateway is up, "
            "and the network policy between them",
            type(error).__name__, error, ADDRESS_VARIABLE,
        )  # fmt: skip
        return False
    _LOG.info("pushed telemetry of the %s pipeline to %s", telemetry.pipeline, host)
    return True


def is_watched() -> bool:
    """Tell whether there is a Pushgateway to push to."""
    return bool(os.environ.get(ADDRESS_VARIABLE, "").strip())


def _host_of(address: str) -> str:
    """Return host and port of a gateway's address."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("the address does not begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("the address holds a user name; the gateway is reached without one")
    return parts.netloc


@functools.cache
def _say_absent() -> None:
    """Say once in a process that nothing is pushed."""
    _LOG.info("%s is not set: no telemetry is pushed", ADDRESS_VARIABLE)


def read_gpu_utilisation() -> float | None:
    """Return the mean utilisation of the visible GPUs over the last sample period, in [0, 1].

    None where there is no NVIDIA GPU or its driver does not tell.
    """
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        percents = [float(line) for line in answer.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return sum(percents) / len(percents) / 100 if percents else None
