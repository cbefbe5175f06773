"""Names of findings: the one place where spellings of the public data sets meet.

Canonical names are NIH ChestX-ray14's (Wang et al. 2017, arXiv:1705.02315), with
`Pleural_Thickening` underscored as there, and CheXpert's for what NIH does not have (Irvin et al.
2019, arXiv:1901.07031).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
_URGENCY = re.compile(r"0(\.\d+)?|1(\.0*)?")
_CODE = re.compile(r"([\w.-]{1,16}):([\w.-]{1,16}):([ -:<-~]{1,64})", re.ASCII)
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


@dataclass(frozen=True, kw_only=True)
class OwnFinding:
    """A finding that a user asks for."""

    name: str
    """Canonical name."""
    synonyms: str | None = None
    """Spellings joined by a slash; None if none were named."""
    urgency: float | None = None
    """In [0, 1]; None for the default."""
    code: tuple[str, str, str] | None = None
    """Value, scheme and meaning for structured reports; None for the default."""

    def __str__(self) -> str:
        """Return the entry that `own_findings` reads again."""
        parts = [self.name if self.synonyms is None else f"{self.name}={self.synonyms}"]
        parts += [] if self.urgency is None else [f"urgency={self.urgency:g}"]
        parts += [] if self.code is None else [f"code={':'.join(self.code)}"]
        return ";".join(parts)

    def details(self) -> dict[str, Any]:
        """Return what data set and model keep of it beside the name, JSON-ready."""
        kept = {"urgency": self.urgency, "code": None if self.code is None else list(self.code)}
        return {name: value for name, value in kept.items() if value is not None}


def own_findings(entries: Iterable[str]) -> tuple[dict[str, OwnFinding], Vocabulary]:
    """Return the findings that a user asks for, by canonical name, and their vocabulary.

    Args:
        entries: Names, each a known spelling or a name of one's own. Synonyms may follow, and
            after semicolons an urgency and a code for structured reports, as in
            `Tuberculosis=TB/Koch;urgency=0.9;code=56717001:SCT:Tuberculosis`.

    Raises:
        UnknownFindingError: a name cannot be one, or is so close to a known one that it is a slip;
            or an urgency or a code cannot be one.
    """
    own: dict[str, str] = {}
    asked: dict[str, OwnFinding] = {}
    for entry in entries:
        named, *details = entry.split(";")
        given, equals, synonyms = (part.strip() for part in named.partition("="))
        if not given or is_no_finding(given):
            continue
        name = _BY_KEY.get(_key(given)) or _own_name(given, is_meant=bool(equals))
        asked[name] = OwnFinding(
            name=name, synonyms=synonyms if equals else None, **_details(name, details)
        )
        for spelling in filter(None, (given, *synonyms.split("/"))):
            if own.setdefault(_key(spelling), name) != name:
                raise UnknownFindingError(
                    f"{spelling!r} is a spelling of {own[_key(spelling)]} and of {name}; keep one"
                )
    return asked, Vocabulary(own)


def _details(name: str, parts: Iterable[str]) -> dict[str, Any]:
    """Read `urgency=0.9` and `code=VALUE:SCHEME:MEANING`."""
    found: dict[str, Any] = {}
    for part in parts:
        key, _, text = (word.strip() for word in part.partition("="))
        if key == "urgency" and _URGENCY.fullmatch(text):
            found[key] = float(text)
        elif key == "code" and (code := _CODE.fullmatch(text)):
            found[key] = code.groups()
        else:
            raise UnknownFindingError(
                f"{part.strip()!r} of finding {name} cannot be read; it must be urgency=0.9 (in "
                "[0, 1]) or code=VALUE:SCHEME:MEANING (ASCII, at most 16, 16 and 64 characters)"
            )
    return found


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


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a known or an own finding; None if it cannot be one."""
    try:
        return next(iter(own_findings([name])[0]), None)
    except UnknownFindingError:
        return None


def is_no_finding(name: str) -> bool:
    """Tell whether a label says that there is nothing to find."""
    return _key(name) in {"no finding", "no findings", "normal"}
