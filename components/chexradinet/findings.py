"""Names of findings: the one place where spellings of the public data sets meet.

Canonical names are NIH ChestX-ray14's (Wang et al. 2017, arXiv:1705.02315), with
`Pleural_Thickening` underscored as there, and CheXpert's for what NIH does not have (Irvin et al.
2019, arXiv:1901.07031).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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


_OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 _()-]{1,60}")
_TOO_CLOSE = 0.85
"""Likeness to a known spelling from which an own name is taken for a slip of the keyboard."""


@dataclass(frozen=True)
class Vocabulary:
    """Spellings of findings: the known ones, and those that a user adds."""

    own: Mapping[str, str] = field(default_factory=dict)
    """Canonical name by key of a spelling, for findings that are not known or spelled again."""

    def canonical(self, name: str) -> str:
        """Return the canonical name of a finding.

        Args:
            name: Any spelling: case, spaces and underscores do not matter; NIH's `Infiltrate` is
                `Infiltration`, CheXpert's `Pleural Effusion` is `Effusion`.

        Raises:
            UnknownFindingError: no finding has this name.
        """
        key = _key(name)
        found = self.own.get(key) or _BY_KEY.get(key)
        if found is None:
            spellings = {**_BY_KEY, **self.own}
            close = difflib.get_close_matches(key, spellings, n=1)
            hint = f"did you mean {spellings[close[0]]!r}? " if close else ""
            raise UnknownFindingError(
                f"unknown finding {name!r}; {hint}known are {', '.join(KNOWN_FINDINGS)}; correct "
                "the label table, or name your own in the setting findings (docs/datasets.md)"
            )
        return found

    def canonical_all(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return canonical names in the given order, each once, without `No Finding`.

        Raises:
            UnknownFindingError: a name is unknown.
        """
        kept = (name for name in names if name.strip() and not is_no_finding(name))
        return tuple(dict.fromkeys(self.canonical(name) for name in kept))

    def names(self, text: str) -> bool:
        """Tell whether a text names a finding, or says that there is none."""
        return _key(text) in self.own or _key(text) in _BY_KEY or is_no_finding(text)


KNOWN = Vocabulary()
"""The findings of the public data sets and nothing else."""


def own_findings(entries: Iterable[str]) -> tuple[dict[str, str], Vocabulary]:
    """Return the findings that a user asks for, by canonical name, and their vocabulary.

    Args:
        entries: Names, each a known spelling or a name of one's own; synonyms may follow, as in
            `Tuberculosis=TB/Koch`.

    Raises:
        UnknownFindingError: a name cannot be one, or is so close to a known one that it is a slip.

    Returns:
        Each finding as an entry that this function reads again, and the spellings.
    """
    own: dict[str, str] = {}
    asked: dict[str, str] = {}
    for entry in entries:
        given, equals, synonyms = (part.strip() for part in entry.partition("="))
        if not given or is_no_finding(given):
            continue
        name = _BY_KEY.get(_key(given)) or _own_name(given, is_meant=bool(equals))
        asked[name] = f"{name}={synonyms}" if equals else name
        for spelling in filter(None, (given, *synonyms.split("/"))):
            if own.setdefault(_key(spelling), name) != name:
                raise UnknownFindingError(
                    f"{spelling!r} is a spelling of {own[_key(spelling)]} and of {name}; keep one"
                )
    return asked, Vocabulary(own)


def _own_name(given: str, *, is_meant: bool) -> str:
    if not _OWN_NAME.fullmatch(given):
        raise UnknownFindingError(
            f"{given!r} is not a finding's name; it must begin with a letter and have 2 to 61 "
            "letters, digits, spaces, hyphens, underscores or parentheses"
        )
    close = difflib.get_close_matches(_key(given), _BY_KEY, n=1, cutoff=_TOO_CLOSE)
    if close and not is_meant:
        raise UnknownFindingError(
            f"unknown finding {given!r}; did you mean {_BY_KEY[close[0]]!r}? For another "
            f"finding write {given}= into findings, with its synonyms if any"
        )
    return "_".join(given.replace("_", " ").split())


def canonical_finding(name: str) -> str:
    """Return the canonical name of a known finding; see `Vocabulary.canonical`."""
    return KNOWN.canonical(name)


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a known or an own finding; None if it cannot be one."""
    try:
        return next(iter(own_findings([name])[0]), None)
    except UnknownFindingError:
        return None


def is_no_finding(name: str) -> bool:
    """Tell whether a label says that there is nothing to find."""
    return _key(name) in {"no finding", "no findings", "normal"}
