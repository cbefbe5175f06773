"""Identifiers of the training data set: keyed hashes and shifted dates, nothing that leads back.

The same patient gets the same identifier in every data set made with the same key, and nobody
without the key can tell which. If there is a key, messages do not quote names either. What is
kept, replaced and dropped: docs/deidentification.md.

Source: DICOM PS3.15 annex E (Basic Application Level Confidentiality Profile), with the Retain
Longitudinal Temporal Information with Modified Dates option.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta

from chexradinet.errors import ConfigError, LabelTableError, SourceError
from chexradinet.records import RadiographHeader

KEY_VARIABLE = "CHEXRADINET_DEIDENTIFICATION_KEY"
"""Environment variable that holds the key."""

MIN_KEY_CHARACTERS = 32
"""Shortest key: 128 bits if it is written in hex."""

MAX_SHIFT_DAYS = 3650
"""Dates move into the past by 1 to this many days, the same number for all of a patient's."""

_DIGITS = 32
_TOP_AGE = 90.0
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
"""What `repr` gives for a text, also if it holds both kinds of quotes."""
_COLUMNS = re.compile(r"its columns are [^;]*;", re.DOTALL)
_HIDDEN = "(not shown)"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeidentificationKey:
    """The secret that turns identifiers into codes. Its `repr` does not show it."""

    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeidentifiedIds:
    """What stands in a data set for a patient, a study and an image."""

    patient_id: str
    study_id: str
    image_id: str
    study_date: date | None
    """Shifted; intervals between a patient's dates are kept."""


def deidentification_key() -> DeidentificationKey:
    """Read the key from the environment.

    Raises:
        ConfigError: the variable is not set, or the key is shorter than `MIN_KEY_CHARACTERS`.
    """
    secret = os.environ.get(KEY_VARIABLE, "").strip()
    if len(secret) < MIN_KEY_CHARACTERS:
        given = f"has {len(secret)} characters" if secret else "is not set"
        raise ConfigError(
            f"{KEY_VARIABLE} {given}; it must be a secret of at least {MIN_KEY_CHARACTERS} "
            "characters, kept for as long as data sets are to share identifiers: make one with "
            "`openssl rand -hex 32` and see docs/deidentification.md"
        )
    return DeidentificationKey(secret=secret.encode())


def coded(key: DeidentificationKey, kind: str, identifier: str) -> str:
    """Return the code of an identifier: 32 hex digits of an HMAC-SHA256.

    Args:
        key: The secret.
        kind: What is identified, such as `patient`: equal identifiers of two kinds get two codes.
        identifier: As in the header or the label table; surrounding spaces do not matter.
    """
    message = f"{kind}\0{identifier.strip()}".encode()
    return hmac.new(key.secret, message, hashlib.sha256).hexdigest()[:_DIGITS]


def shifted(key: DeidentificationKey, patient_id: str, day: date | None) -> date | None:
    """Return a date moved into the past by the patient's own number of days.

    Args:
        key: The secret, from which the number follows.
        patient_id: Original identifier.
        day: Date to move; None stays None.

    Returns:
        The moved date, or None if it would lie before the year 1.
    """
    if day is None:
        return None
    days = 1 + int(coded(key, "shift", patient_id), 16) % MAX_SHIFT_DAYS
    try:
        return day - timedelta(days=days)
    except OverflowError:
        return None


def deidentified_ids(header: "RadiographHeader", key: DeidentificationKey) -> DeidentifiedIds:
    """Return the codes of a radiograph.

    If the header names no patient or study, the code is made from what is next below: study,
    then image, so that unnamed patients are not thrown together.
    """
    image = header.sop_instance_uid
    study = header.study_instance_uid or image
    patient = header.patient_id or study
    return DeidentifiedIds(
        patient_id=coded(key, "patient", patient),
        study_id=coded(key, "study", study),
        image_id=coded(key, "image", image),
        study_date=shifted(key, patient, header.acquisition_date or header.study_date),
    )


def coarse_age(age_years: float | None) -> float | None:
    """Return an age in whole years, 90 and above as 90: older patients are few enough to be found.

    Source: 45 CFR 164.514(b)(2)(i)(C).
    """
    if age_years is None:
        return None
    return min(float(int(age_years)), _TOP_AGE)


def optional_key(needed: bool) -> DeidentificationKey | None:
    """Return the key of the environment, or None if there is none and none is needed.

    Raises:
        ConfigError: it is needed and not set, or set and too short.
    """
    given = os.environ.get(KEY_VARIABLE, "").strip()
    return deidentification_key() if needed or given else None


def name_of(key: DeidentificationKey | None, kind: str, name: str) -> str:
    """Return what stands for a name in the data set.

    Args:
        key: Makes codes; None keeps the name. Bytes that are no Unicode are escaped.
        kind: `patient`, `study`, `image` or `file`.
        name: As in the source; empty stays empty.
    """
    readable = os.fsencode(name).decode("utf-8", "backslashreplace")
    return coded(key, kind, readable) if key is not None and name else readable


@contextmanager
def redact(key: DeidentificationKey | None) -> Iterator[None]:
    """Leave values of tables and names of folders out of raised errors if there is a key."""
    try:
        yield
    except (LabelTableError, SourceError) as error:
        if key is None:
            raise
        message = _QUOTED.sub(_HIDDEN, _COLUMNS.sub(f"its columns are {_HIDDEN};", str(error)))
        # Without its cause, whose text would be printed with a traceback.
        raise type(error)(message) from None
