"""Identifiers that a rerun gives again: UUIDs of version 5 as UIDs below 2.25.

Source: DICOM PS3.5 annex B.2 (UUID derived UIDs), RFC 9562 section 5.5.
"""

import re
import uuid

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "chexradinet")
_UID = re.compile(r"^[0-9]+(\.[0-9]+)+$")
_MAX_UID = 64
_MAX_INTEGER_STRING = 2**31 - 1

IMPLEMENTATION_UID = f"2.25.{uuid.uuid5(_NAMESPACE, 'implementation').int}"
"""Implementation Class UID of every file written."""


def derived_uid(*parts: str) -> str:
    """Return a UID that is equal for equal parts and, but for chance, for no others.

    Args:
        parts: What identifies the thing, such as the source's UID, digests and the kind.
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def derived_number(*parts: str) -> int:
    """Return a number in [1, 2^31 - 1] for an Integer String, equal for equal parts."""
    return uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int % _MAX_INTEGER_STRING + 1


def is_usable_uid(text: str) -> bool:
    """Tell whether a file may refer by this UID: digits and dots, at most 64 characters.

    Leading zeros of a component are let pass: archives hold such X-rays, and a reference must
    repeat their UID as it is.
    """
    return len(text) <= _MAX_UID and _UID.match(text) is not None
