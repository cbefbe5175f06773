"""The model bundle: a directory that holds everything scoring or the next round needs. No pickle.

`bundle.json` names the SHA-256 of every other file; the SHA-256 of its own canonical JSON, without
the key `digest`, is the bundle's identity. Equal models give equal bytes and so equal digests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chexradinet.artifacts import writing_directory
from chexradinet.errors import ArtifactError, MismatchError
from chexradinet.model.bundle_info import BUNDLE_HEAD as BUNDLE_HEAD
from chexradinet.model.bundle_info import (
    REFERENCE_PREFIX,
    WEIGHTS_FILE,
    copy_provenance,
    write_info,
)
from chexradinet.model.bundle_info import BundleInfo as BundleInfo
from chexradinet.model.bundle_info import copy_bundle as copy_bundle
from chexradinet.model.bundle_info import read_bundle_info as read_bundle_info
from chexradinet.model.bundle_info import read_reference_arrays as read_reference_arrays
from chexradinet.model.bundle_info import require_match as require_match
from chexradinet.model.bundle_info import verify_bundle as verify_bundle
from chexradinet.model.card import model_card as model_card
from chexradinet.model.losses import GuidanceHeads
from chexradinet.model.provenance import write_provenance
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise

_NETWORK_PREFIX = "network."
_HEADS_PREFIX = "heads."


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle in memory; the network and the heads are in evaluation mode."""

    info: BundleInfo
    network: ChexRadiNet
    heads: GuidanceHeads | None
    digest: str


def save_bundle(
    target: Path,
    info: BundleInfo,
    network: ChexRadiNet,
    heads: GuidanceHeads | None,
    model_card: str,
    provenance: Sequence[dict[str, Any]] = (),
) -> str:
    """Write a bundle, whole or not at all; an older one at `target` is replaced.

    Args:
        target: Directory to make.
        info: Must describe `network`: same config, as many findings as it has logits.
        network: On any device, in any mode.
        heads: Heads of the contrastive term, if there are any.
        model_card: Markdown, from `model_card(info)`.
        provenance: Records of the stages that led to it; see `model.provenance`.

    Returns:
        The bundle's digest.

    Raises:
        MismatchError: `info` describes another network.
        ArtifactError: a number in `info` is not finite.
    """
    if (info.network, len(info.findings)) != (network.config, network.num_findings):
        raise MismatchError(
            f"the info describes {info.network} with {len(info.findings)} findings, the network is "
            f"{network.config} with {network.num_findings}; pass the info of this network"
        )
    tensors = _prefixed(_NETWORK_PREFIX, network.state_dict())
    if heads is not None:
        tensors |= _prefixed(_HEADS_PREFIX, heads.state_dict())
    with writing_directory(target, BUNDLE_HEAD) as folder:
        save_file(tensors, folder / WEIGHTS_FILE)
        if provenance:
            write_provenance(folder, provenance)
        return write_info(folder, info, model_card)


def load_bundle(path: Path, verify: bool = True, device: str = "cpu") -> LoadedBundle:
    """Read a bundle.

    Args:
        path: Its directory.
        verify: Compare the SHA-256 of every file; leave it on unless it was done just before.
        device: Where the network and the heads go.

    Raises:
        ArtifactError: a file is missing or changed, the schema is another, the weights do not fit,
            are not finite or of another type, or the model gives no finite numbers.
    """
    info, digest = read_bundle_info(path)
    if verify:
        verify_bundle(path)
    network = build_network(info.network, len(info.findings))
    weights = path / WEIGHTS_FILE
    try:
        tensors = load_file(weights)
        heads = _fill(network, tensors)
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{weights} does not hold the weights of {info.network} ({error}); make or copy the "
            "bundle again"
        ) from error
    _require_finite(network.eval(), weights)
    network.to(device)
    return LoadedBundle(info, network, heads and heads.to(device).eval(), digest)


def replace_info(
    source: Path,
    target: Path,
    reference_arrays: Mapping[str, NDArray[np.float32]],
    **changes: Any,  # noqa: ANN401
) -> str:
    """Write a bundle with the same weights and other info, such as a calibration.

    Args:
        source: Directory of the existing bundle.
        target: Directory to make; may be `source`.
        reference_arrays: Arrays of the new reference distributions; empty without any.
        changes: Fields of `BundleInfo` and their new values; the model card is rendered again.

    Returns:
        The digest of the new bundle.

    Raises:
        ArtifactError: the source is incomplete or changed, or a new number is not finite.
    """
    verify_bundle(source)
    info = replace(read_bundle_info(source)[0], **changes)
    tensors = {
        name: value
        for name, value in load_file(source / WEIGHTS_FILE).items()
        if not name.startswith(REFERENCE_PREFIX)
    }
    arrays = {name: torch.from_numpy(np.array(value)) for name, value in reference_arrays.items()}
    with writing_directory(target, BUNDLE_HEAD) as folder:
        copy_provenance(source, folder)
        save_file(tensors | _prefixed(REFERENCE_PREFIX, arrays), folder / WEIGHTS_FILE)
        return write_info(folder, info, model_card(info))


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value.detach().cpu().contiguous() for name, value in state.items()}


def _unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _fill(network: ChexRadiNet, tensors: dict[str, Tensor]) -> GuidanceHeads | None:
    """Load weights strictly: no name, shape or type may differ. Return the heads, if there are any.

    Raises:
        RuntimeError: something differs, or a weight is not finite.
    """
    state = _unprefixed(_HEADS_PREFIX, tensors)
    heads = GuidanceHeads(network.num_channels) if state else None
    for module, given in ((network, _unprefixed(_NETWORK_PREFIX, tensors)), (heads, state)):
        if module is None:
            continue
        declared = {name: value.dtype for name, value in module.state_dict().items()}
        module.load_state_dict(given)
        for name, value in given.items():
            if value.dtype != declared[name]:
                raise RuntimeError(f"{name} is {value.dtype}, not {declared[name]}")
            if not value.isfinite().all():
                raise RuntimeError(f"{name} holds NaN or infinity")
    return heads


def _require_finite(network: ChexRadiNet, weights: Path) -> None:
    """Refuse a network that overflows on a black image, a white one and a ramp between them."""
    ramp = torch.arange(64, dtype=torch.uint8) * 4
    images = torch.stack([torch.zeros(64), torch.full((64,), 255.0), ramp]).to(torch.uint8)
    with torch.inference_mode():
        found = network(normalise(images[:, None].expand(3, 64, 64)))
    if not all(part.isfinite().all() for part in found):
        raise ArtifactError(
            f"the model of {weights} gives NaN or infinity for a plain test image; train it again"
        )
