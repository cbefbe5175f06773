"""Names of findings: the one place where spellings of the public data sets meet.

Canonical names are NIH ChestX-ray14's (Wang et al. 2017, arXiv:1705.02315), with
`Pleural_Thickening` underscored as there, and CheXpert's for what NIH does not have (Irvin et al.
2019, arXiv:1901.07031).
"""

import difflib
from collections.abc import Iterable

from chexradinet.errors import UnknownFindingError

NO_FINDING = "No Finding"
"""Label of an X-ray without any finding; never a column of its own."""

NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The 14 findings of NIH ChestX-ray14, in the order of its publication."""

CHEXPERT_FINDINGS = (
    "Enlarged_Cardiomediastinum",
    "Cardiomegaly",
    "Lung_Opacity",
    "Lung_Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Effusion",
    "Pleural_Other",
    "Fracture",
    "Support_Devices",
)
"""The findings of CheXpert and MIMIC-CXR, without `No Finding`."""

KNOWN_FINDINGS = tuple(dict.fromkeys(NIH_FINDINGS + CHEXPERT_FINDINGS))
"""Every canonical name."""

_SPELLINGS = {
    "infiltrate": "Infiltration",
    "pleural effusion": "Effusion",
    "edema lung": "Edema",
    "oedema": "Edema",
    "lung opacity": "Lung_Opacity",
    "airspace opacity": "Lung_Opacity",
    "pleural thickening": "Pleural_Thickening",
}


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


_BY_KEY = {_key(name): name for name in KNOWN_FINDINGS} | _SPELLINGS


def canonical_finding(name: str) -> str:
    """Return the canonical name of a finding.

    Args:
        name: Any spelling: case, spaces and underscores do not matter; NIH's `Infiltrate` is
            `Infiltration`, CheXpert's `Pleural Effusion` is `Effusion`.

    Raises:
        UnknownFindingError: no canonical finding has this name.
    """
    found = _BY_KEY.get(_key(name))
    if found is None:
        close = difflib.get_close_matches(_key(name), _BY_KEY, n=1)
        hint = f"did you mean {_BY_KEY[close[0]]!r}? " if close else ""
        raise UnknownFindingError(
            f"unknown finding {name!r}; {hint}known are {', '.join(KNOWN_FINDINGS)}; "
            "mend the label table, or add the spelling in chexradinet/findings.py"
        )
    return found


def is_no_finding(name: str) -> bool:
    """Tell whether a label says that there is nothing to find."""
    return _key(name) in {"no finding", "no findings", "normal"}


def is_finding(text: str) -> bool:
    """Tell whether a text names a finding, or says that there is none."""
    return _key(text) in _BY_KEY or is_no_finding(text)


def canonical_findings(names: Iterable[str]) -> tuple[str, ...]:
    """Return canonical names in the given order, each once, without `No Finding`.

    Raises:
        UnknownFindingError: a name is unknown.
    """
    kept = (name for name in names if name.strip() and not is_no_finding(name))
    return tuple(dict.fromkeys(canonical_finding(name) for name in kept))
