"""The Kubeflow Pipelines API server: where it is, who asks, and what its refusals mean.

Uses the generated client alone (`kfp_server_api`): `kfp.Client` reads and writes a context file in
the home folder, prints, and tries other clusters when the one it was given does not answer.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kfp_server_api as kfp_api
import urllib3

from chexradinet.errors import ChexRadiNetError, ConfigError

PROJECTED_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubernetes projects a token for the audience `pipelines.kubeflow.org`."""

TIMEOUT_S = (10, 60)
"""Seconds to wait for a connection, and for the next bytes of an answer."""

PAGE_SIZE = 100
"""Most results of a listing at once."""

_CONNECTION_TRIES = 3


class KubeflowError(ChexRadiNetError):
    """The API server cannot be reached or did not do what was asked."""


class KubeflowUnreachableError(KubeflowError):
    """Nothing that speaks the API answers at the host, or it failed for a while."""


class KubeflowAccessError(KubeflowError):
    """The token is missing, expired, or may not do this."""


class KubeflowNotFoundError(KubeflowError):
    """The API knows no such object."""


class KubeflowQuotaError(KubeflowError):
    """A quota is used up, or requests come too fast."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the API is and who asks."""

    host: str
    """Address of the web interface, the API server or the gateway before it, `http(s)://…`."""
    namespace: str = ""
    """Profile namespace in a multi-user installation, else empty."""
    ui_host: str = ""
    """Address of the web interface if `host` is not it, such as the API server alone."""
    token: str = field(default="", repr=False)
    """Bearer token; empty asks without one unless there is a token file."""
    token_file: Path | None = None
    """Projected token, read again for every request because Kubernetes renews it."""
    ca_file: str = ""
    """Certificates to trust beside the public ones; empty trusts the public ones."""

    def run_link(self, run_id: str) -> str:
        """Return the page of a run in the web interface."""
        return f"{(self.ui_host or self.host).rstrip('/')}/#/runs/details/{run_id}"


def endpoint_from(environment: Mapping[str, str], host: str = "", namespace: str = "") -> Endpoint:
    """Return the endpoint that options and environment name; an option wins.

    Args:
        environment: `KFP_HOST`, `KFP_NAMESPACE`, `KFP_UI_HOST`, `KFP_TOKEN`, `KFP_CA_FILE` and
            `KF_PIPELINES_SA_TOKEN_PATH` are read.
        host: Address of the API server; empty reads `KFP_HOST`.
        namespace: Profile; empty reads `KFP_NAMESPACE`.

    Raises:
        ConfigError: no host is given, or it is not an http address.
    """
    host = (host or environment.get("KFP_HOST", "")).strip().rstrip("/")
    if not host:
        raise ConfigError(
            "no Kubeflow host is given; add --host or set KFP_HOST to the address of its web "
            "interface, which also hands on to the API, such as http://localhost:8080 after "
            "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`"
        )
    if not host.startswith(("http://", "https://")):
        raise ConfigError(f"the Kubeflow host is {host!r}; it must begin with http:// or https://")
    path = Path(environment.get("KF_PIPELINES_SA_TOKEN_PATH") or PROJECTED_TOKEN)
    return Endpoint(
        host=host,
        namespace=namespace or environment.get("KFP_NAMESPACE", ""),
        ui_host=environment.get("KFP_UI_HOST", ""),
        token=environment.get("KFP_TOKEN", "").strip(),
        token_file=path if path.is_file() else None,
        ca_file=environment.get("KFP_CA_FILE", ""),
    )


@dataclass(frozen=True)
class Api:
    """The services of one API server that this project uses."""

    endpoint: Endpoint
    pipelines: kfp_api.PipelineServiceApi
    uploads: kfp_api.PipelineUploadServiceApi
    experiments: kfp_api.ExperimentServiceApi
    runs: kfp_api.RunServiceApi
    recurring_runs: kfp_api.RecurringRunServiceApi


def connect(endpoint: Endpoint) -> Api:
    """Return the API's services once it has said that it is well.

    Raises:
        KubeflowError: it cannot be reached, refuses the token, or is something else.
    """
    client = kfp_api.ApiClient(_configuration(endpoint))
    with explained(endpoint, "asking the API server for its health"):
        kfp_api.HealthzServiceApi(client).healthz_service_get_healthz(_request_timeout=TIMEOUT_S)
    kind = client.last_response.getheader("content-type") or "no content type"
    if "json" not in kind:
        raise KubeflowUnreachableError(
            f"{endpoint.host} answers {kind}, not JSON: it is a login page or another server; "
            "--host must be the web interface or the API server, or the gateway's address with "
            "/pipeline and a token"
        )
    return Api(
        endpoint,
        kfp_api.PipelineServiceApi(client),
        kfp_api.PipelineUploadServiceApi(client),
        kfp_api.ExperimentServiceApi(client),
        kfp_api.RunServiceApi(client),
        kfp_api.RecurringRunServiceApi(client),
    )


def _configuration(endpoint: Endpoint) -> kfp_api.Configuration:
    configuration = kfp_api.Configuration()
    configuration.host = endpoint.host
    configuration.retries = urllib3.Retry(_CONNECTION_TRIES, backoff_factor=0.2)
    configuration.ssl_ca_cert = endpoint.ca_file or None
    token_file = endpoint.token_file
    if endpoint.token:
        configuration.api_key["authorization"] = endpoint.token
    elif token_file is not None:
        configuration.api_key["authorization"] = "read for every request"

        def refresh(renewed: kfp_api.Configuration) -> None:
            renewed.api_key["authorization"] = token_file.read_text(encoding="utf-8").strip()

        configuration.refresh_api_key_hook = refresh
    configuration.api_key_prefix["authorization"] = "Bearer"
    return configuration


@contextmanager
def explained(endpoint: Endpoint, doing: str) -> Iterator[None]:
    """Turn what the generated client raises into errors that say what to do.

    Args:
        endpoint: Where it was tried.
        doing: What was being done, as `creating the run`.

    Raises:
        KubeflowError: of the class that the answer stands for.
    """
    try:
        yield
    except kfp_api.ApiException as error:
        raise _refusal(doing, error.status, _said(error)) from error
    except urllib3.exceptions.HTTPError as error:
        cause = getattr(error, "reason", None) or error
        raise KubeflowUnreachableError(
            f"{doing}: {endpoint.host} cannot be reached ({type(cause).__name__}: {cause}); check "
            "--host or KFP_HOST, the port-forward or VPN, and for https the certificate "
            "(KFP_CA_FILE)"
        ) from error


def named(api: Api, listing: Callable[..., Any], what: str, name: str) -> Any:  # noqa: ANN401
    """Return what a listing of the API has under a display name.

    Args:
        api: Connected API.
        listing: The client's method.
        what: What is listed, for messages.
        name: Display name.

    Raises:
        KubeflowError: the server refuses or cannot be reached.
    """
    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    with explained(api.endpoint, f"looking for the {what} {name!r}"):
        return listing(
            namespace=api.endpoint.namespace,
            filter=json.dumps({"predicates": [predicate]}),
            page_size=PAGE_SIZE,
            _request_timeout=TIMEOUT_S,
        )


def _said(error: kfp_api.ApiException) -> str:
    """Return what the server said, at most 400 characters of it."""
    try:
        body = json.loads(error.body or "")
    except ValueError:
        body = {}
    message = body.get("message") or body.get("error") if isinstance(body, dict) else ""
    text = message if isinstance(message, str) and message else str(error.reason or "no reason")
    return " ".join(text.split())[:400]


def _refusal(doing: str, status: int, said: str) -> KubeflowError:
    """Return the error that a refused request stands for."""
    start = f"{doing}: HTTP {status}, {said}"
    if status == 429 or (status == 403 and "quota" in said.casefold()):
        return KubeflowQuotaError(f"{start}; a quota is used up: wait, free some, or ask for more")
    if status == 401:
        return KubeflowAccessError(
            f"{start}; the token is missing or expired: set KFP_TOKEN to a fresh one"
        )
    if status == 403:
        return KubeflowAccessError(
            f"{start}; the account may not do this: check --namespace and its RoleBinding, or set "
            "KFP_TOKEN to a fresh token"
        )
    if status == 404:
        return KubeflowNotFoundError(f"{start}; check the name and --namespace")
    if status >= 500:
        return KubeflowUnreachableError(f"{start}; the API server failed: look at its log")
    return KubeflowError(f"{start}; the API server did not accept the request")
