"""A model bundle as files: `bundle.json`, its digest, the check of its files. Without torch."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from chexradinet.artifacts import read_document, sha256_of, write_document, writing_directory
from chexradinet.config import NetworkConfig, PreprocessingConfig, canonical_json, digest_of
from chexradinet.errors import ArtifactError, ConfigError, MismatchError
from chexradinet.replacing import Head

KIND = "bundle"
SCHEMA = 1
WEIGHTS_FILE = "weights.safetensors"
INFO_FILE = "bundle.json"
CARD_FILE = "model-card.md"
REFERENCE_PREFIX = "reference."
"""Of the names of the reference's tensors beside the weights."""
BUNDLE_HEAD = Head(INFO_FILE, KIND)
"""By which a directory is known for a bundle."""


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What a bundle says about its weights. Every number is finite; dictionaries are JSON-ready."""

    network: NetworkConfig
    """Shape of the classifier."""
    findings: tuple[str, ...]
    """Canonical names, in the order of the logits."""
    preprocessing: PreprocessingConfig
    """How original images became the pixels it was trained on."""
    preprocessing_digest: str
    """Digest of the training data's preprocessing; what is scored must have the same."""
    round: int = 0
    """0 was trained on labels alone, later ones were guided."""
    guidance: str = "none"
    """Arm of the guidance, as `GuidanceConfig.arm` names it."""
    radiomics_normalisation: dict[str, Any] | None = None
    """Fitted on the training split; None before a guided round."""
    calibration: dict[str, Any] | None = None
    """From logits to probabilities, a finding; None for an uncalibrated model."""
    thresholds: dict[str, Any] | None = None
    """Operating thresholds on probabilities, a finding; None before calibration."""
    reference: dict[str, Any] | None = None
    """Distributions that drift is measured against; None before calibration."""
    training_data_digest: str = ""
    """Identity of the data set it was trained on."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Results and the protocol they were measured by."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Training and guidance settings of this round."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON gives it back: lists for tuples, strings for names."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def read_bundle_info(path: Path) -> tuple[BundleInfo, str]:
    """Return a bundle's info and digest without reading its weights.

    Raises:
        ArtifactError: `bundle.json` is missing, of another schema version, or was changed.
    """
    document = _read_document(path)
    digest, files, kept = document["digest"], document["files"], dict(document)
    for key in ("digest", "files", "kind", "schema"):
        del kept[key]
    try:
        kept["network"] = NetworkConfig(**kept["network"])
        kept["preprocessing"] = PreprocessingConfig(**kept["preprocessing"])
        kept["findings"] = tuple(kept["findings"])
        info = BundleInfo(**kept)
    except (ConfigError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path / INFO_FILE} does not describe a model ({error}); use the release that wrote it"
        ) from error
    if set(files) != {WEIGHTS_FILE, CARD_FILE}:
        raise ArtifactError(f"{path / INFO_FILE} lists {sorted(files)}; make the bundle again")
    return info, digest


def verify_bundle(path: Path) -> str:
    """Compare the bytes of every file with what was written; return the digest.

    Raises:
        ArtifactError: a file is missing or changed; it names the file.
    """
    document = _read_document(path)
    for name, written in document["files"].items():
        found = sha256_of(path / name)
        if found != written:
            raise ArtifactError(
                f"{path / name} was changed: its SHA-256 is {found}, written was {written}; copy "
                "the bundle again from where it was published"
            )
    digest: str = document["digest"]
    return digest


def read_reference_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of the reference distributions that `BundleInfo.reference` describes.

    They lie beside the weights, which are not read; there are none without a reference.

    Raises:
        ArtifactError: the file of weights is missing or is none.
    """
    weights = path / WEIGHTS_FILE
    try:
        with safe_open(weights, framework="numpy") as tensors:
            return {
                name.removeprefix(REFERENCE_PREFIX): tensors.get_tensor(name)
                for name in tensors.keys()  # noqa: SIM118 (it is no dictionary)
                if name.startswith(REFERENCE_PREFIX)
            }
    except (FileNotFoundError, SafetensorError) as error:
        raise ArtifactError(
            f"{weights} holds no tensors ({error}); make or copy the bundle again"
        ) from error


def copy_bundle(source: Path, target: Path) -> str:
    """Copy a bundle unchanged, after verifying it; return its digest.

    Raises:
        ArtifactError: the source is incomplete or changed.
    """
    digest = verify_bundle(source)
    with writing_directory(target, BUNDLE_HEAD) as folder:
        for name in (WEIGHTS_FILE, CARD_FILE, INFO_FILE):
            shutil.copyfile(source / name, folder / name)
        verify_bundle(folder)
    return digest


def require_match(
    info: BundleInfo,
    *,
    findings: tuple[str, ...] | None = None,
    preprocessing_digest: str | None = None,
) -> None:
    """Refuse data that a bundle was not made for.

    Args:
        info: Of the bundle.
        findings: Of the data, in order; None where it has none.
        preprocessing_digest: Of the data; None leaves it unchecked.

    Raises:
        MismatchError: it names both sides.
    """
    if findings is not None and tuple(findings) != info.findings:
        raise MismatchError(
            f"the model knows the findings {', '.join(info.findings)}; the data has "
            f"{', '.join(findings)}; ingest the data with the model's findings in this order"
        )
    if preprocessing_digest is not None and preprocessing_digest != info.preprocessing_digest:
        raise MismatchError(
            f"the model was trained on pixels of preprocessing {info.preprocessing_digest}, the "
            f"data has {preprocessing_digest}; ingest the data with {info.preprocessing}"
        )


def write_info(folder: Path, info: BundleInfo, card: str) -> str:
    """Write the card and `bundle.json` beside the weights in `folder`; return the digest.

    Raises:
        ArtifactError: a number in `info` is not finite.
    """
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    files = {name: sha256_of(folder / name) for name in (CARD_FILE, WEIGHTS_FILE)}
    content = {**info.as_dict(), "files": files}
    try:
        digest = digest_of({"schema": SCHEMA, "kind": KIND, **content})
    except ValueError as error:
        raise ArtifactError(
            f"the info of the bundle cannot be written as JSON ({error}); give None for what is "
            "not defined"
        ) from error
    write_document(folder / INFO_FILE, KIND, SCHEMA, {**content, "digest": digest})
    return digest


def _read_document(path: Path) -> dict[str, Any]:
    """Return `bundle.json` after comparing its digest and its bytes with what was written."""
    document = read_document(path / INFO_FILE, KIND, SCHEMA)
    content = {key: value for key, value in document.items() if key != "digest"}
    same_bytes = json.dumps(document, indent=1) + "\n" == (path / INFO_FILE).read_text("utf-8")
    complete = isinstance(document.get("files"), dict)
    if not (complete and same_bytes and document.get("digest") == _digest_or_none(content)):
        raise ArtifactError(
            f"{path / INFO_FILE} was changed after it was written: its digest does not match; copy "
            "the bundle again from where it was published"
        )
    return document


def _digest_or_none(content: dict[str, Any]) -> str | None:
    try:
        canonical_json(content)
    except ValueError:
        return None
    return digest_of(content)
