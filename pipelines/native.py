"""Kubernetes-native manifests: `Pipeline` and `PipelineVersion` objects for `kubectl apply`.

For API servers that keep pipelines as Kubernetes objects (KFP 2.14 and later with
`--pipelinesStoreKubernetes`). A version's spec cannot be changed once it is there, so its name
carries the release, the image and the content: what differs has another name. The file must be
applied with `kubectl apply --server-side`: client-side apply copies each object into an annotation,
which holds 256 KiB, and a training pipeline is larger.

Source: manifests/kustomize/base/crds of kubeflow/pipelines 2.17.
"""

import hashlib
import re
from pathlib import Path

import yaml

from chexradinet import __version__
from chexradinet.config import digest_of
from chexradinet.errors import ConfigError
from pipelines.documents import Document

API_VERSION = "pipelines.kubeflow.org/v2beta1"
_NAME_MAX = 63
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_TAG = re.compile(r":[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")

# libyaml's safe dumper is ten times as fast; some builds of PyYAML lack it.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def require_pinned(image: str) -> str:
    """Return an image's reference that names what it will run.

    Raises:
        ConfigError: it has neither a tag nor a digest, or is not a reference at all.
    """
    name = image.rpartition("/")[2]  # a port of the registry is not a tag
    tagged = "@" not in name and _TAG.search(name)
    if not re.search(r"\s", image) and (_DIGEST.search(image) or tagged):
        return image
    raise ConfigError(
        f"image {image!r} has no tag and no digest, so nobody could say later what ran; give it "
        "as name:tag, or better as name@sha256:…"
    )


def require_registry(image: str, named: str) -> str:
    """Return an image's reference that every node of a cluster can pull.

    Args:
        image: Reference that a pipeline was compiled for.
        named: Reference that was asked for in so many words; empty for none. It is taken as it is:
            the nodes of a kind cluster have what `kind load docker-image` gave them.

    Raises:
        ConfigError: it names no registry, and nobody asked for it: a cluster would look for the
            image of this machine on Docker Hub.
    """
    host, slash, _ = image.partition("/")
    if image == named or (slash and (host == "localhost" or "." in host or ":" in host)):
        return image
    raise ConfigError(
        f"the pipeline was compiled for the image {image!r}, which names no registry, and a "
        "cluster would look for it on Docker Hub; add --image registry.example.org/NAME@sha256:… "
        f"or --image {image} if every node has it, as after `kind load docker-image`"
    )


def content_digest(document: Document, platform: Document) -> str:
    """Return the SHA-256 of what a compiled pipeline says, whatever its layout, in hex."""
    return digest_of([document, platform])


def version_name(document: Document, platform: Document) -> str:
    """Return a version's name: release, image, content; a DNS label of at most 63 characters.

    The image stands there by the start of its digest; one that has only a tag, by the start of the
    SHA-256 of its reference.
    """
    image = hashlib.sha256(_image(document).encode()).hexdigest()
    if digest := _DIGEST.search(_image(document)):
        image = digest[0].rpartition(":")[2]
    tail = f"-{image[:12]}-{content_digest(document, platform)[:8]}"
    release = re.sub(r"[^a-z0-9]+", "-", __version__.lower())
    head = f"{document['pipelineInfo']['name']}-{release}"
    return head[: _NAME_MAX - len(tail)].rstrip("-") + tail


def _image(document: Document) -> str:
    parameters = document["root"].get("inputDefinitions", {}).get("parameters", {})
    return str(parameters.get("worker_image", {}).get("defaultValue", ""))


def manifests(document: Document, platform: Document, namespace: str = "") -> list[Document]:
    """Return the `Pipeline` and the `PipelineVersion` of a compiled pipeline.

    Args:
        document: The pipeline's specification.
        platform: Its platform document; may be empty.
        namespace: Namespace of both objects; empty leaves it to `kubectl apply -n`.
    """
    info = document["pipelineInfo"]
    name = version_name(document, platform)
    place = {"namespace": namespace} if namespace else {}
    spec: Document = {
        "pipelineName": info["name"],
        "displayName": f"{__version__} ({name.rpartition('-')[2]})",
        "description": info.get("description", ""),
        "pipelineSpec": document,
    }
    if platform:
        spec["platformSpec"] = platform
    labels = {"app.kubernetes.io/part-of": "chexradinet", "app.kubernetes.io/version": __version__}
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "Pipeline",
            "metadata": {"name": info["name"], **place, "labels": labels},
            "spec": {
                "displayName": info.get("displayName", info["name"]),
                "description": info.get("description", ""),
            },
        },
        {
            "apiVersion": API_VERSION,
            "kind": "PipelineVersion",
            "metadata": {"name": name, **place, "labels": labels},
            "spec": spec,
        },
    ]


def write_native(path: Path, document: Document, platform: Document, namespace: str = "") -> None:
    """Write both manifests into one YAML file."""
    objects = manifests(document, platform, namespace)
    text = yaml.dump_all(objects, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(text, encoding="utf-8")
