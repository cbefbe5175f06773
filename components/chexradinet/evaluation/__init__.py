"""The one place for figures: `metrics.json`, written once, from which every report draws.

    {"schema": 1, "kind": "metrics",
     "protocol": {"rounds": text, "test": text, "localization": text},
     "findings": [...],
     "rounds": [{"round": 0, "guidance": "none", "mean_auroc": ..., "auroc": {finding: ...},
                 "localization": {"iou_0.1": ..., "random_iou_0.1": ..., ...}}],
     "best_round": 0,
     "test": {the same keys, "ci95": {...}, "ece": ..., "by_view": {view: {"mean_auroc": ...}}},
     "arms": {"control" | "permuted": {"rounds": [...], "test": {...}, "difference": {...}}}}

A number that is not defined is null; NaN and infinity never get in.

The effect of guidance follows from the numbers: a gain is claimed only if the whole 95% interval of
the paired difference lies above 0, and it is credited to radiomics only if the guided model also
beats the arm with permuted features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chexradinet.artifacts import Head, read_document, write_document
from chexradinet.errors import ArtifactError

KIND = "metrics"
"""Kind of the document."""
SCHEMA = 1
"""Its schema version."""
METRICS_FILE = "metrics.json"
EVALUATION_HEAD = Head(METRICS_FILE, KIND)
"""By which a directory is known for an evaluation."""
LOCALIZATION_KEYS = ("iou_0.1", "iou_0.3", "iou_0.5", "pointing")
"""What is measured: boxes at three overlaps, and whether the map's peak lies in a true box."""
LOCALIZATION_FIELDS = tuple(
    f"{prefix}{key}" for prefix in ("", "random_", "swapped_") for key in LOCALIZATION_KEYS
)
"""Keys that every `localization` entry holds."""
_ROUND_FIELDS = ("round", "guidance", "mean_auroc", "auroc", "localization")
_TEST_FIELDS = ("mean_auroc", "auroc", "localization", "ci95", "ece", "by_view")

ARM_NAMES = {
    "control": "the control arm (no guidance, same epochs)",
    "permuted": "the permuted arm",
}
"""How an arm is called in a sentence."""
MEASURES = {
    "mean_auroc": "mean AUROC",
    "iou_0.1": "localisation at IoU 0.1",
    "iou_0.3": "localisation at IoU 0.3",
    "iou_0.5": "localisation at IoU 0.5",
    "pointing": "pointing accuracy",
}
"""What arms are compared in, as sentences and table heads name it."""
_VERDICTS = {
    "gain": "higher in",
    "loss": "lower in",
    "none shown": "no difference shown (the interval includes 0) in",
    "not defined": "not defined in",
}


def round_entry(
    number: int,
    guidance: str,
    classification: Mapping[str, Any],
    localization: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what metrics.json says of one round, on the split that rounds are chosen by.

    Args:
        number: Number of the round; 0 is trained on labels alone.
        guidance: Arm of the round, as `GuidanceConfig.arm` names it; `none` for round 0.
        classification: Result of `classification_metrics`.
        localization: Result of `with_controls`; None if the split has no boxes: every number is
            then null.
    """
    return {
        "round": number,
        "guidance": guidance,
        **classification,
        "localization": {**dict.fromkeys(LOCALIZATION_FIELDS), **(localization or {})},
    }


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
    rounds: Sequence[Mapping[str, Any]],
    best_round: int,
    test: Mapping[str, Any],
    protocol: Mapping[str, str] | str,
    **extra: Any,  # noqa: ANN401 - sections beyond the schema, checked to be JSON below
) -> dict[str, Any]:
    """Return a checked document for `write_metrics`.

    Args:
        rounds: `round_entry` of every round that ran, in order.
        best_round: The round that was chosen; the test entry is of it.
        test: Figures of the chosen round on the test split; `classification_metrics`,
            `localization`, `ci95`, `ece`, `by_view`, and what a report shows beyond (`roc`, ...).
        protocol: Lines of `protocol_text`, for `rounds`, `test` and `localization`, or one for all.
        extra: Further sections: `arms`, `findings`, `dataset`, ...

    Raises:
        ArtifactError: a key is missing, or the best round is none of the rounds.
    """
    lines = dict.fromkeys(("rounds", "test", "localization"), protocol)
    localized = {**dict.fromkeys(LOCALIZATION_FIELDS), **(test.get("localization") or {})}
    document = {
        "protocol": lines if isinstance(protocol, str) else dict(protocol),
        "rounds": list(rounds),
        "best_round": best_round,
        "test": {**test, "localization": localized},
        **extra,
    }
    ready: dict[str, Any] = _json_ready(document)
    _check(ready, "the metrics document")
    return ready


def _json_ready(value: Any) -> Any:  # noqa: ANN401 - any nesting of values in, the same out
    """Return the value with plain numbers, lists and string keys; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(inner) for key, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _json_ready(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_json_ready(inner) for inner in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


def write_metrics(path: Path, document: Mapping[str, Any]) -> None:
    """Write metrics.json, atomically.

    Raises:
        ArtifactError: a key of the schema is missing.
    """
    ready = _json_ready(document)
    _check(ready, str(path))
    content = {key: value for key, value in ready.items() if key not in ("schema", "kind")}
    write_document(path, KIND, SCHEMA, content)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json.

    Raises:
        ArtifactError: it is missing, not JSON, of another schema version, or lacks a key.
    """
    document = read_document(path, KIND, SCHEMA)
    _check(document, str(path))
    return document


def headline_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headline table: one row per round, the chosen one marked.

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


def verdict(difference: Mapping[str, Any] | None) -> str:
    """Return `gain`, `loss`, `none shown` or `not defined` for a paired difference."""
    if not difference or difference.get("difference") is None or difference.get("ci95") is None:
        return "not defined"
    low, high = difference["ci95"]
    if low > 0:
        return "gain"
    return "loss" if high < 0 else "none shown"


def gain_sentences(arms: Mapping[str, Any]) -> list[str]:
    """Return one sentence per arm, then what may be credited to radiomics.

    Args:
        arms: Entry of metrics.json: `control` and `permuted`, each with `difference`: measure to
            `difference` (guided model minus arm) and `ci95`. Either may be missing.
    """
    if not arms:
        return [
            "No control arm was trained, so the effect of guidance is unknown: a change between "
            "rounds may come from the additional epochs alone."
        ]
    sentences = [_sentence(arm, entry.get("difference") or {}) for arm, entry in arms.items()]
    return [*sentences, _credit(arms)]


def _sentence(arm: str, differences: Mapping[str, Any]) -> str:
    """Say in which measures the guided model is higher, lower, or not shown to differ."""
    clauses = []
    for found, phrase in _VERDICTS.items():
        listed = [
            _listed(name, differences[name])
            for name in MEASURES
            if name in differences and verdict(differences[name]) == found
        ]
        if listed:
            clauses.append(f"{phrase} {', '.join(listed)}")
    compared = "; ".join(clauses) or "nothing was compared"
    return f"Against {ARM_NAMES.get(arm, f'the {arm} arm')}: {compared}."


def _listed(measure: str, difference: Mapping[str, Any]) -> str:
    if verdict(difference) == "not defined":
        return MEASURES[measure]
    numbers = f"{signed(difference['difference'])} {interval(difference['ci95'])}"
    return f"{MEASURES[measure]} ({numbers})"


def _credit(arms: Mapping[str, Any]) -> str:
    missing = [ARM_NAMES[arm] for arm in ARM_NAMES if arm not in arms]
    if missing:
        return f"Without {' and '.join(missing)}, no gain can be credited to radiomics."
    differences = [arms[arm].get("difference") or {} for arm in ARM_NAMES]
    credited = [
        name
        for measure, name in MEASURES.items()
        if all(verdict(difference.get(measure)) == "gain" for difference in differences)
    ]
    if credited:
        return (
            f"The guided model beats both arms in {', '.join(credited)}: there the content of the "
            "radiomics features contributed."
        )
    return (
        "In no measure does the guided model beat both arms: no gain is credited to the content of "
        "the radiomics features."
    )


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return "n/d" if value is None else f"{value:+.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Return an interval in brackets, or nothing if it is not defined."""
    return "" if bounds is None else f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
