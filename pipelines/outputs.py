"""What the steps of a run produced, read as Kubeflow's web interface reads it.

The API's task list names no artifacts. The interface asks the metadata store for them, by gRPC-Web,
where the values of metrics and curves are too, and has files handed on by an endpoint of its own.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    struct_pb2,
)

from chexradinet.errors import ConfigError
from pipelines.api import TIMEOUT_S, Api, KubeflowError, KubeflowNotFoundError, explained

_SERVICE = "ml_metadata.MetadataStoreService"
_PACKAGE = "chexradinet.ml_metadata"
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Value": {
        "int_value": (1, "int64"),
        "double_value": (2, "double"),
        "string_value": (3, "string"),
        "struct_value": (4, ".google.protobuf.Struct"),
    },
    "Property": {"key": (1, "string"), "value": (2, f".{_PACKAGE}.Value")},
    "Artifact": {
        "uri": (3, "string"),
        "custom_properties": (5, f"*.{_PACKAGE}.Property"),
        "type": (8, "string"),
    },
    "Context": {"id": (1, "int64")},
    "GetContextByTypeAndNameRequest": {"type_name": (1, "string"), "context_name": (2, "string")},
    "GetContextByTypeAndNameResponse": {"context": (1, f".{_PACKAGE}.Context")},
    "GetArtifactsByContextRequest": {"context_id": (1, "int64")},
    "GetArtifactsByContextResponse": {"artifacts": (1, f"*.{_PACKAGE}.Artifact")},
}
"""Fields of the metadata store's messages that are used: number and type, `*` for a list."""


@dataclass(frozen=True, slots=True)
class Output:
    """An artifact of a step."""

    step: str
    name: str
    """Name of the step's output."""
    kind: str
    """Schema, as `system.Metrics`."""
    uri: str
    properties: Mapping[str, Any]
    """Values that the step logged, beside Kubeflow's own."""


def require_web_interface(api: Api) -> None:
    """Refuse an address that does not hand on to the metadata store.

    Raises:
        ConfigError: it is the API server alone.
        KubeflowError: it cannot be reached.
    """
    try:
        _context_of(api, "none")
    except KubeflowNotFoundError:
        raise ConfigError(
            f"{_address(api)} is the API server alone; set KFP_HOST, or KFP_UI_HOST beside it, to "
            "the address of the web interface"
        ) from None


def outputs_of(api: Api, run_id: str) -> list[Output]:
    """Return the artifacts of a run's steps.

    Raises:
        KubeflowError: the web interface cannot be reached, or does not know the run.
    """
    context = _context_of(api, run_id)
    if not context.id:
        raise KubeflowNotFoundError(f"the metadata store knows no run {run_id}")
    return list(_outputs(_call(api, "GetArtifactsByContext", context_id=context.id).artifacts))


def read_file(api: Api, output: Output) -> bytes:
    """Return the file of an output.

    Raises:
        KubeflowError: the web interface does not hand it on.
    """
    source, _, place = output.uri.partition("://")
    bucket, _, key = place.partition("/")
    query = {"source": source, "bucket": bucket, "key": key}
    query["namespace"] = api.endpoint.namespace or "kubeflow"
    query["providerInfo"] = str(output.properties.get("store_session_info", ""))
    path = "/artifacts/get"
    return _request(api, "GET", path, f"reading {output.name}", query_params=list(query.items()))


def _context_of(api: Api, run_id: str) -> Any:  # noqa: ANN401 - messages made from their fields
    named = {"type_name": "system.PipelineRun", "context_name": run_id}
    return _call(api, "GetContextByTypeAndName", **named).context


def _outputs(artifacts: Any) -> Iterator[Output]:  # noqa: ANN401
    for one in artifacts:
        *_, step, _, name = f"///{one.uri}".split("/")
        properties = {pair.key: _plain(pair.value) for pair in one.custom_properties}
        yield Output(step, name, one.type, one.uri, properties)


def _plain(value: Any) -> Any:  # noqa: ANN401
    (kept,) = json_format.MessageToDict(value, preserving_proto_field_name=True).values() or (None,)
    return kept


def _call(api: Api, method: str, **fields: object) -> Any:  # noqa: ANN401
    """Ask the metadata store, and return its answer's message."""
    asked = json_format.ParseDict(fields, _message(f"{method}Request")).SerializeToString()
    doing = f"asking the metadata store through the web interface ({method})"
    body = struct.pack(">BI", 0, len(asked)) + asked
    kind = {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"}
    # A gateway has the interface below /pipeline, but not what it hands on to the metadata store.
    host = _address(api).removesuffix("/pipeline")
    path = f"/{_SERVICE}/{method}"
    said = _request(api, "POST", path, doing, _host=host, body=body, header_params=kind)
    answer, trailer = _message(f"{method}Response"), ""
    while said:
        flag, size = struct.unpack(">BI", said[:5])
        frame, said = said[5 : 5 + size], said[5 + size :]
        if flag & 0x80:
            trailer = frame.decode("latin-1")
        else:
            answer.MergeFromString(frame)
    if "grpc-status:0" not in trailer.replace(" ", ""):
        raise KubeflowError(f"{doing}: it answers {' '.join(trailer.split()) or 'nothing'}")
    return answer


def _request(api: Api, method: str, path: str, doing: str, **given: Any) -> bytes:  # noqa: ANN401
    with explained(api.endpoint, doing):
        answer = api.runs.api_client.call_api(
            path,
            method,
            auth_settings=["Bearer"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=TIMEOUT_S,
            **{"_host": _address(api)} | given,
        )
    return bytes(answer.data)


def _address(api: Api) -> str:
    return (api.endpoint.ui_host or api.endpoint.host).rstrip("/")


def _message(name: str) -> Any:  # noqa: ANN401
    """Return an empty message of the metadata store."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))()


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="metadata_store.proto",
        package=_PACKAGE,
        syntax="proto2",
        dependency=[struct_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for label, (number, kind) in fields.items():
            field = message.field.add(name=label, number=number)
            field.label = field.LABEL_REPEATED if kind[0] == "*" else field.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind[0] == ".":
                field.type, field.type_name = field.TYPE_MESSAGE, kind
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return pool


_POOL = _pool()
