"""A model bundle as files: `bundle.json`, its digest, the check of its files. Without torch."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from chexradinet.artifacts import Head, read_document, sha256_of, write_document, writing_directory
from chexradinet.config import (
    NetworkConfig,
    PreprocessingConfig,
    Settings,
    canonical_json,
    digest_of,
)
from chexradinet.errors import ArtifactError, ConfigError, MismatchError

KIND = "bundle"
SCHEMA = 1
WEIGHTS_FILE = "weights.safetensors"
INFO_FILE = "bundle.json"
CARD_FILE = "model-card.md"
PROVENANCE_FILE = "provenance.json"
"""Beside the model and not part of its digest; see `model.bundle.provenance`."""
REFERENCE_PREFIX = "reference."
"""Prefix of the reference's tensor names in the weights file."""
BUNDLE_HEAD = Head(INFO_FILE, KIND)
"""By which a directory is known for a bundle."""


_FILES = {WEIGHTS_FILE, CARD_FILE}
_UNREAD = "radiomics_normalisation"
"""Written by releases before 0.2.0 and never read; each guided round fits its own."""
_OBJECTS = ("calibration", "thresholds", "reference", "metrics", "settings", "finding_details")
_KINDS: dict[str, type] = {**dict.fromkeys(_OBJECTS, dict), "history": list}
_FINDING = re.compile(r"[^\W_][^/\\\x00-\x1f\x7f]{0,63}")
"""Names end up in tables, reports and file names: a letter or digit first, no slash, one line."""


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
    history: list[dict[str, Any]] | None = None
    """The epochs of this round as `model.training.fit` returns them; None in older bundles."""
    finding_details: dict[str, Any] = field(default_factory=dict)
    """`urgency` and `code` of the findings that the data set gives their own."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON gives it back: lists for tuples, strings for names."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=Settings.record))
        if not self.finding_details:
            del plain["finding_details"]
        return plain


def read_bundle_info(path: Path) -> tuple[BundleInfo, str]:
    """Return a bundle's info and digest without reading its weights.

    Raises:
        ArtifactError: `bundle.json` is missing, of another schema version, was changed, or holds
            what no model can have, such as a threshold above 1; it names the first fault.
    """
    document = _read_document(path)
    envelope = ("digest", "files", "kind", "schema", _UNREAD)
    kept = {key: value for key, value in document.items() if key not in envelope}
    try:
        kept["network"] = NetworkConfig(**kept["network"])
        kept["preprocessing"] = PreprocessingConfig(**kept["preprocessing"])
        kept["findings"] = tuple(kept["findings"])
        info = BundleInfo(**kept)
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path / INFO_FILE} does not describe a model ({type(error).__name__}: {error}); use "
            "the release that wrote it"
        ) from error
    _require_sound(info, path / INFO_FILE)
    return info, document["digest"]


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
                f"{path / name} was changed: its SHA-256 is {found}, expected {written}; copy "
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
                for name in tensors.keys()  # noqa: SIM118 (not a dictionary)
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
        copy_provenance(source, folder)
        verify_bundle(folder)
    return digest


def copy_provenance(source: Path, folder: Path) -> None:
    """Copy the provenance of a bundle, if it has one."""
    if (source / PROVENANCE_FILE).is_file():
        shutil.copyfile(source / PROVENANCE_FILE, folder / PROVENANCE_FILE)


class Prepared(Protocol):
    """A data set, a plan, or another description of images and their labels."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Names, in order."""
        ...

    @property
    def preprocessing_digest(self) -> str:
        """Digest of how the images were prepared."""
        ...


def require_match(info: BundleInfo, data: Prepared) -> None:
    """Refuse data that a bundle was not made for.

    Raises:
        MismatchError: it names both sides.
    """
    if tuple(data.findings) != info.findings:
        raise MismatchError(
            f"the model knows the findings {', '.join(info.findings)}; the data has "
            f"{', '.join(data.findings)}; ingest the data with the model's findings in this order"
        )
    if data.preprocessing_digest != info.preprocessing_digest:
        raise MismatchError(
            f"the model was trained on pixels of preprocessing {info.preprocessing_digest}, the "
            f"data has {data.preprocessing_digest}; ingest the data with {info.preprocessing}"
        )


def write_info(folder: Path, info: BundleInfo, card: str) -> str:
    """Write the card and `bundle.json` beside the weights in `folder`; return the digest.

    Raises:
        ArtifactError: a number in `info` is not finite or out of bounds.
    """
    _require_sound(info, folder / INFO_FILE)
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
    if not (same_bytes and document.get("digest") == _digest_or_none(content)):
        raise ArtifactError(
            f"{path / INFO_FILE} was changed after it was written: its digest does not match; copy "
            "the bundle again from where it was published"
        )
    files = document.get("files")
    if not isinstance(files, dict) or set(files) != _FILES:
        raise ArtifactError(
            f"{path / INFO_FILE} must list the digests of {sorted(_FILES)} and no other file; make "
            "the bundle again"
        )
    return document


def _require_sound(info: BundleInfo, where: Path) -> None:
    for fault in _faults(info):
        raise ArtifactError(f"{where}: {fault}; train or calibrate the model again")


def _faults(info: BundleInfo) -> Iterator[str]:
    """Yield what is wrong with the values of an info, in words."""
    # What was read is of any type, whatever the record declares.
    names: tuple[Any, ...] = info.findings
    number: Any = info.round
    sound = [isinstance(name, str) and _FINDING.fullmatch(name) for name in names]
    if not names or not all(sound) or len(set(names)) < len(names):
        yield "findings must be distinct names of at most 64 characters without a slash"
    if not isinstance(number, int) or number < 0:
        yield f"round is {number!r}, it must be a whole number of at least 0"
    for key, kind in _KINDS.items():
        if not isinstance(getattr(info, key), kind | None):
            yield f"{key} must be {'a list' if kind is list else 'an object'}"
            return
    yield from _threshold_faults("thresholds", info.thresholds or {}, names)
    if info.calibration is not None:
        entries = info.calibration.get("findings")
        if not isinstance(entries, dict):
            yield "calibration must have an entry per finding below `findings`"
            return
        for name, entry in entries.items():
            yield from _calibration_faults(name, entry)


def _calibration_faults(name: str, entry: Any) -> Iterator[str]:  # noqa: ANN401
    if not isinstance(entry, dict):
        yield f"the calibration of {name} must be an object"
        return
    slope, intercept = entry.get("slope"), entry.get("intercept")
    if not _is_number(slope) or slope <= 0:
        yield f"the slope of {name} is {slope!r}, it must be finite and above 0"
    if not _is_number(intercept):
        yield f"the intercept of {name} is {intercept!r}, it must be finite"
    yield from _threshold_faults("calibration", {name: entry.get("threshold")}, (name,))


def _threshold_faults(
    where: str, thresholds: dict[str, Any], findings: tuple[str, ...]
) -> Iterator[str]:
    for name, value in thresholds.items():
        if name not in findings:
            yield f"{where} names {name!r}, which is not a finding of the model"
        elif value is not None and not (_is_number(value) and 0 <= value <= 1):
            yield f"the threshold of {name} in {where} is {value!r}, it must be in [0, 1] or null"


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _digest_or_none(content: dict[str, Any]) -> str | None:
    try:
        canonical_json(content)
    except ValueError:
        return None
    return digest_of(content)
