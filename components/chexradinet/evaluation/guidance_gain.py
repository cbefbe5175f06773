"""What guidance bought, in words that follow from the numbers.

A gain is claimed only where the whole 95% interval of the paired difference lies above 0, and it is
credited to radiomics only where the guided model also beats the arm with permuted features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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


def verdict(difference: Mapping[str, Any] | None) -> str:
    """Return `gain`, `loss`, `none shown` or `not defined` for a paired difference."""
    if not difference or difference.get("difference") is None or difference.get("ci95") is None:
        return "not defined"
    low, high = difference["ci95"]
    if low > 0:
        return "gain"
    return "loss" if high < 0 else "none shown"


def gain_sentences(arms: Mapping[str, Any]) -> list[str]:
    """Return one sentence an arm, then what may be credited to radiomics.

    Args:
        arms: Of metrics.json: `control` and `permuted`, each with `difference`: measure to
            `difference` (guided model minus arm) and `ci95`. Either may be missing.
    """
    if not arms:
        return [
            "No control arm was trained, so nothing here says what guidance bought: "
            "a change between rounds may come from the additional epochs alone."
        ]
    sentences = [_sentence(arm, entry.get("difference") or {}) for arm, entry in arms.items()]
    return [*sentences, _credit(arms)]


def _sentence(arm: str, differences: Mapping[str, Any]) -> str:
    """Say in which measures the guided model is higher, lower, or not shown to differ."""
    verdicts = {name: verdict(differences.get(name)) for name in MEASURES if name in differences}
    words = {
        "gain": "higher in",
        "loss": "lower in",
        "none shown": "no difference shown (the interval includes 0) in",
        "not defined": "not defined in",
    }
    clauses = []
    for found, phrase in words.items():
        listed = [_listed(name, differences[name]) for name in verdicts if verdicts[name] == found]
        if listed:
            clauses.append(f"{phrase} {', '.join(listed)}")
    told = "; ".join(clauses) or "nothing was compared"
    return f"Against {ARM_NAMES.get(arm, f'the {arm} arm')}: {told}."


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
    """Return an interval in brackets, or nothing where it is not defined."""
    return "" if bounds is None else f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
