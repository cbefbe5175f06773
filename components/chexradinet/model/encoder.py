"""A pre-trained encoder as files: the network without its last layer, to start a training from.

`encoder.json` names the SHA-256 of the weights; the SHA-256 of its own canonical JSON, without the
key `digest`, is the encoder's identity. Equal encoders give equal bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chexradinet.artifacts import Head, read_document, sha256_of, write_document, writing_directory
from chexradinet.config import digest_of
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.model.provenance import write_provenance
from chexradinet.model.resnet import ChexRadiNet

KIND = "encoder"
SCHEMA = 1
ENCODER_FILE = "encoder.json"
ENCODER_HEAD = Head(ENCODER_FILE, KIND)
"""By which a directory is known for an encoder."""
_WEIGHTS_FILE = "weights.safetensors"


def save_encoder(
    target: Path,
    network: ChexRadiNet,
    record: Mapping[str, Any],
    provenance: Sequence[dict[str, Any]] = (),
) -> str:
    """Write an encoder, whole or not at all; return its digest.

    Args:
        target: Directory to make; an older encoder there is replaced.
        network: Pre-trained, on any device, in any mode.
        record: What is said of it, JSON-ready; `preprocessing_digest` among it.
        provenance: Records of the stages that led to it; see `model.provenance`.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if _is_encoder(name)
    }
    with writing_directory(target, ENCODER_HEAD) as folder:
        save_file(tensors, folder / _WEIGHTS_FILE)
        if provenance:
            write_provenance(folder, provenance)
        files = {_WEIGHTS_FILE: sha256_of(folder / _WEIGHTS_FILE)}
        content = {"network": network.config.record(), **record, "files": files}
        digest = digest_of(content)
        write_document(folder / ENCODER_FILE, KIND, SCHEMA, {**content, "digest": digest})
    return digest


def read_encoder(path: Path) -> dict[str, Any]:
    """Return what an encoder says of itself, after a comparison of its bytes with its digests.

    Raises:
        ArtifactError: a file is missing or changed.
    """
    document = read_document(path / ENCODER_FILE, KIND, SCHEMA)
    envelope = ("schema", "kind", "digest")
    content = {name: value for name, value in document.items() if name not in envelope}
    written = content.get("files", {}).get(_WEIGHTS_FILE)
    intact = document.get("digest") == digest_of(content)
    if not intact or sha256_of(path / _WEIGHTS_FILE) != written:
        raise ArtifactError(f"the encoder in {path} was changed; pre-train or copy it again")
    return {**content, "digest": document["digest"]}


def load_encoder(network: ChexRadiNet, path: Path, preprocessing_digest: str) -> dict[str, Any]:
    """Start a network from an encoder; its last layer keeps its values.

    Args:
        network: A network of the encoder's shape; changed in place.
        path: Directory that `save_encoder` wrote.
        preprocessing_digest: Digest for the images that the network will see.

    Returns:
        What the encoder says of itself.

    Raises:
        ArtifactError: a file is missing or changed, or the weights cannot be read.
        MismatchError: it is of another network or of other preprocessing.
    """
    record = read_encoder(path)
    needed = {
        "network": network.config.record(),
        "preprocessing_digest": preprocessing_digest,
    }
    for name, value in needed.items():
        if record.get(name) != value:
            raise MismatchError(
                f"the encoder in {path} has {name} {record.get(name)!r}, it must be {value!r}; "
                "pre-train one with the settings of this training"
            )
    own = {name for name in network.state_dict() if _is_encoder(name)}
    try:
        tensors = load_file(path / _WEIGHTS_FILE)
        if set(tensors) != own or not all(value.isfinite().all() for value in tensors.values()):
            raise RuntimeError("names differ, or a weight is NaN or infinite")
        network.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"the encoder in {path} does not hold the weights of {network.config} ({error}); "
            "pre-train it again"
        ) from error
    return record


def _is_encoder(name: str) -> bool:
    return not name.startswith("fc.")
