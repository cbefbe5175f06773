"""The model bundle: a directory that holds everything scoring or the next round needs. No pickle.

`bundle.json` names the SHA-256 of every other file; the SHA-256 of its own canonical JSON, without
the key `digest`, is the bundle's identity. Equal models give equal bytes and so equal digests.

What made a model beside its data and settings (code, packages, machine) lies beside it as
`provenance.json` and is not part of its digest: equal weights and settings are the same model,
whichever machine made them.

The model card says what the model is for, how it was made, and its limits. Its sections follow
Mitchell et al. 2019, arXiv:1810.03993; the front matter is that of the Hugging Face Hub, so that a
bundle can be uploaded there as it is.
"""

import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chexradinet.artifacts import (
    read_document,
    sha256_of,
    write_document,
    writing_directory,
    writing_file,
)
from chexradinet.config import digest_of
from chexradinet.config.training import OptimizationConfig
from chexradinet.errors import ArtifactError, ConfigError, MismatchError
from chexradinet.model import (
    BUNDLE_HEAD,
    PROVENANCE_FILE,
    REFERENCE_PREFIX,
    WEIGHTS_FILE,
    BundleInfo,
    copy_provenance,
    read_bundle_info,
    verify_bundle,
    write_info,
)
from chexradinet.model.attention import TripletAttention
from chexradinet.model.distributed import Ranks
from chexradinet.model.inference import folded
from chexradinet.model.losses import GuidanceHeads
from chexradinet.model.resnet import ChexRadiNet, build_network, normalise
from chexradinet.version import __version__

_NETWORK_PREFIX = "network."
_HEADS_PREFIX = "heads."
_PACKAGE = Path(__file__).resolve().parents[1]
_PROCESSORS = Path("/proc/cpuinfo")
GUIDANCE_EVIDENCE = (
    "Shown: with few labels, a frozen encoder that was pre-trained to predict local radiomics "
    "separates findings better than one pre-trained on permuted radiomics or on HOG (a subset of "
    "NIH, 96 px, a small network).",
    "Not shown: that the contrast between image and radiomics in the guided rounds helps; on real "
    "X-rays it did no better than permuted radiomics, on generated ones slightly worse.",
    "Not shown: that radiomics improve a fully fine-tuned classifier (on generated X-rays "
    "twice the epochs without a pretext did at least as much), or anything clinical.",
)
"""What may and what may not be claimed about radiomics guidance, whatever one run measures."""

ONNX_OUTPUTS = ("logits", "maps", "embedding")
_ONNX_OPSET = 17


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
    stages: Sequence[dict[str, Any]] = (),
) -> str:
    """Write a bundle, whole or not at all; an older one at `target` is replaced.

    Args:
        target: Directory to make.
        info: Must describe `network`: same config, as many findings as it has logits.
        network: On any device, in any mode.
        heads: Heads of the contrastive term, if there are any.
        stages: Records of the stages that led to it, from `provenance`.

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
        if stages:
            write_provenance(folder, stages)
        return write_info(folder, info, model_card(info))


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


def model_card(info: BundleInfo) -> str:
    """Render the card of a bundle as Markdown; it claims nothing that `info` does not hold."""
    # What is not there reads as "not defined".
    templates = Environment(  # noqa: S701 - Markdown
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"json": json.dumps, "shown": _shown}
    return templates.get_template("card.md.j2").render(info=info, evidence=GUIDANCE_EVIDENCE)


def _shown(value: object) -> str:
    if value is None or isinstance(value, Undefined):
        return "not defined"
    if isinstance(value, list):
        return " to ".join(_shown(one) for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def provenance(
    stage: str, data_digests: Sequence[str], config: OptimizationConfig
) -> dict[str, Any]:
    """Return what a stage's result comes from on this machine, JSON-ready.

    Args:
        stage: Name of the stage.
        data_digests: Data sets that it read.
        config: Its seed, and its threads, of which 0 stands for torch's own choice.
    """
    return {
        "stage": stage,
        "data_digests": list(data_digests),
        "seed": config.seed,
        **environment(),
        "threads": config.num_threads or torch.get_num_threads(),
        "processes": Ranks.current().size,
    }


def environment() -> dict[str, Any]:
    """Return code, packages and hardware of this process, JSON-ready."""
    on_gpu = torch.cuda.is_available()
    return {
        "code": {"version": __version__, "sha256": _code_digest()},
        "requirements_lock_sha256": _lock_digest(),
        "packages_sha256": _packages_digest(),
        "software": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "processor": _processor(),
            "accelerator": torch.cuda.get_device_name() if on_gpu else None,
        },
    }


def write_provenance(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the records of all stages that led to a result, the first one first."""
    write_document(folder / PROVENANCE_FILE, "provenance", 1, {"stages": list(records)})


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a bundle or an encoder; none for one of a release without them."""
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return []
    stages: list[dict[str, Any]] = read_document(path, "provenance", 1)["stages"]
    return stages


@cache
def _code_digest() -> str:
    """Return the digest of the package's files, which tells a changed checkout from a release."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def _lock_digest() -> str | None:
    """Return the digest of the checkout's lock; None for an installed package, which has none."""
    path = _PACKAGE.parents[1] / "requirements.lock"
    return sha256_of(path) if path.is_file() else None


@cache
def _packages_digest() -> str:
    """Return the digest of what is installed, names and versions, wherever that came from."""
    return digest_of(sorted({f"{one.name}=={one.version}" for one in distributions()}))


def _processor() -> str:
    if _PROCESSORS.is_file():
        for line in _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


class _TracedAttention(nn.Module):
    """Triplet attention by its definition: no step depends on a size, so a graph can hold it."""

    def __init__(self, attention: TripletAttention) -> None:
        super().__init__()
        self.attention = attention

    def add_to(self, skipped: Tensor, features: Tensor) -> Tensor:
        """Return the end of a residual block, as `TripletAttention.add_to` does."""
        own = self.attention
        columns = own.over_height(_pooled(features, 2))  # (B, 1, C, W)
        rows = own.over_width(_pooled(features, 3).transpose(2, 3))  # (B, 1, H, C)
        places = own.over_channels(_pooled(features, 1))  # (B, 1, H, W)
        weights = columns[:, 0, :, None, :] + rows[:, 0].transpose(1, 2).unsqueeze(3) + places
        return (skipped + features * (weights / 3)).relu()


def _pooled(features: Tensor, axis: int) -> Tensor:
    return torch.stack((features.amax(axis), features.mean(axis)), 1)


def export_onnx(bundle: Path, target: Path) -> None:
    """Write a bundle's network as one ONNX graph: logits, maps and embedding of a batch of images.

    The input is what `normalise` gives, (B, 1, side, side) float32, B free. Calibration, thresholds
    and names of findings stay in `bundle.json`.

    Args:
        bundle: Its directory; it is verified.
        target: File to write; an older one is replaced.

    Raises:
        ArtifactError: the bundle is damaged or not sound.
        ConfigError: the package `onnx` is not installed.
    """
    loaded = load_bundle(bundle)
    network = folded(loaded.network)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            block.attention = _TracedAttention(block.attention)
    side = loaded.info.preprocessing.image_side
    with writing_file(target) as temporary, warnings.catch_warnings(), torch.no_grad():
        # Tracing will end in some later torch; what follows it needs two more packages.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                network,
                (torch.zeros(2, 1, side, side),),
                str(temporary),
                dynamo=False,
                input_names=["images"],
                output_names=list(ONNX_OUTPUTS),
                dynamic_axes={name: {0: "batch"} for name in ("images", *ONNX_OUTPUTS)},
                opset_version=_ONNX_OPSET,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConfigError(
                f"the network cannot be exported ({error}); install the package onnx"
            ) from error
