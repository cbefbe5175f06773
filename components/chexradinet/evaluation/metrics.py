"""The one place where figures live: `metrics.json`, written once, from which every report draws.

    {"schema": 1, "kind": "metrics",
     "protocol": {"rounds": text, "test": text, "localization": text},
     "findings": [...],
     "rounds": [{"round": 0, "guidance": "none", "mean_auroc": ..., "auroc": {finding: ...},
                 "localization": {"iou_0.1": ..., "random_iou_0.1": ..., ...}}],
     "best_round": 0,
     "test": {the same keys, "ci95": {...}, "ece": ..., "by_view": {view: {"mean_auroc": ...}}},
     "arms": {"control" | "permuted": {"rounds": [...], "test": {...}, "difference": {...}}}}

A number that is not defined is null; NaN and infinity never get in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chexradinet.artifacts import read_document, write_document
from chexradinet.errors import ArtifactError
from chexradinet.evaluation.localization import LOCALIZATION_KEYS
from chexradinet.replacing import Head

KIND = "metrics"
"""Kind of the document."""
SCHEMA = 1
"""Its schema version."""
METRICS_FILE = "metrics.json"
EVALUATION_HEAD = Head(METRICS_FILE, KIND)
"""By which a directory is known for an evaluation."""
CONTROLS = ("random", "swapped")
"""Prefixes of the localisation controls."""
LOCALIZATION_FIELDS = tuple(
    f"{prefix}{key}" for prefix in ("", "random_", "swapped_") for key in LOCALIZATION_KEYS
)
"""Keys that every `localization` entry holds."""
_ROUND_FIELDS = ("round", "guidance", "mean_auroc", "auroc", "localization")
_TEST_FIELDS = ("mean_auroc", "auroc", "localization", "ci95", "ece", "by_view")


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """What was measured after one round, on the split that rounds are chosen by."""

    round: int
    """Number of the round; 0 is trained on labels alone."""
    guidance: str
    """Arm of the round, as `GuidanceConfig.arm` names it; `none` for round 0."""
    classification: Mapping[str, Any]
    """Of `classification_metrics`."""
    localization: Mapping[str, Any] = field(default_factory=dict)
    """Of `with_controls`; empty where the split has no boxes: every number is then null."""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        return {
            "round": self.round,
            "guidance": self.guidance,
            **self.classification,
            "localization": complete_localization(self.localization),
        }


def complete_localization(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a localisation entry with every key, null where nothing was measured."""
    return {**dict.fromkeys(LOCALIZATION_FIELDS), **found}


def protocol_text(
    *,
    dataset: str,
    digest: str,
    split: str,
    num_images: int,
    num_patients: int,
    selection: str = "",
) -> str:
    """Return the line that stands beside the numbers of a table: on what they were measured.

    Args:
        dataset: Name of the data set.
        digest: Digest of the data set's content, in hex; shortened here.
        split: Name of the split.
        num_images: Images of the split.
        num_patients: Patients of the split.
        selection: How models, thresholds or rounds were chosen, and on what.
    """
    images = "1 image" if num_images == 1 else f"{num_images:,} images"
    patients = "1 patient" if num_patients == 1 else f"{num_patients:,} patients"
    line = f"{dataset} (data {digest[:12]}), {split} split: {images} of {patients}"
    return f"{line}; {selection}" if selection else line


def metrics_document(
    *,
    rounds: Sequence[RoundMetrics],
    best_round: int,
    test: Mapping[str, Any],
    protocol: Mapping[str, str] | str,
    **extra: Any,  # noqa: ANN401 - sections beyond the schema, checked to be JSON below
) -> dict[str, Any]:
    """Return a checked document for `write_metrics`.

    Args:
        rounds: Every round that ran, in order.
        best_round: The round that was chosen; the test entry is of it.
        test: Of the chosen round on the test split; `classification_metrics`, `localization`,
            `ci95`, `ece`, `by_view`, and what a report shows beyond (`roc`, `reliability`, ...).
        protocol: Of `protocol_text`, for `rounds`, `test` and `localization`, or one line for all.
        extra: Further sections: `arms`, `findings`, `dataset`, ...

    Raises:
        ArtifactError: a key is missing, or the best round is none of the rounds.
    """
    lines = dict.fromkeys(("rounds", "test", "localization"), protocol)
    localized = complete_localization(test.get("localization") or {})
    document = {
        "protocol": lines if isinstance(protocol, str) else dict(protocol),
        "rounds": [entry.as_dict() for entry in rounds],
        "best_round": best_round,
        "test": {**test, "localization": localized},
        **extra,
    }
    ready: dict[str, Any] = json_ready(document)
    _check(ready, "the metrics document")
    return ready


def json_ready(value: Any) -> Any:  # noqa: ANN401 - any nesting of values in, the same out
    """Return the value with plain numbers, lists and string keys; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, (list, tuple)):
        return [json_ready(inner) for inner in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return value


def write_metrics(path: Path, document: Mapping[str, Any]) -> None:
    """Write metrics.json, atomically.

    Raises:
        ArtifactError: a key of the schema is missing.
    """
    ready = json_ready(document)
    _check(ready, str(path))
    content = {key: value for key, value in ready.items() if key not in ("schema", "kind")}
    write_document(path, KIND, SCHEMA, content)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json.

    Raises:
        ArtifactError: it is missing, no JSON, of another schema version, or lacks a key.
    """
    document = read_document(path, KIND, SCHEMA)
    _check(document, str(path))
    return document


def headline_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headline table: one row a round, the chosen one marked.

    Returns:
        Rows with `round`, `guidance`, `best`, `mean_auroc` and the localisation numbers at IoU 0.1
        and 0.3 with both controls.
    """
    keys = [f"{prefix}iou_{at}" for at in ("0.1", "0.3") for prefix in ("", "random_", "swapped_")]
    return [
        {
            "round": entry["round"],
            "guidance": entry["guidance"],
            "best": entry["round"] == document["best_round"],
            "mean_auroc": entry["mean_auroc"],
            **{key: entry["localization"][key] for key in keys},
        }
        for entry in document["rounds"]
    ]


def _check(document: Mapping[str, Any], where: str) -> None:
    _check_keys(document, ("rounds", "best_round", "test", "protocol"), where)
    if not document["rounds"]:
        raise ArtifactError(f"{where} holds no round; evaluate at least round 0")
    for entry in document["rounds"]:
        _check_keys(entry, _ROUND_FIELDS, f"a round of {where}")
        _check_keys(entry["localization"], LOCALIZATION_FIELDS, f"a localization of {where}")
    _check_keys(document["test"], _TEST_FIELDS, f"test of {where}")
    _check_keys(document["test"]["localization"], LOCALIZATION_FIELDS, f"test of {where}")
    numbers = [entry["round"] for entry in document["rounds"]]
    if document["best_round"] not in numbers or len(set(numbers)) != len(numbers):
        raise ArtifactError(
            f"{where} has rounds {numbers} and best round {document['best_round']}; "
            "rounds must be distinct and the best one of them"
        )


def _check_keys(holder: Mapping[str, Any], needed: Sequence[str], where: str) -> None:
    missing = [key for key in needed if key not in holder]
    if missing:
        raise ArtifactError(f"{where} lacks {', '.join(missing)}; make the metrics again")
