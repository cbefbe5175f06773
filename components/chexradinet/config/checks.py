"""What every setting is checked with, and how settings become text and digests."""

import hashlib
import json
from enum import StrEnum
from typing import TypeVar

from chexradinet.errors import ConfigError

Choice = TypeVar("Choice", bound=StrEnum)


def require(holds: bool, setting: str, value: object, needed: str) -> None:
    """Raise a `ConfigError` that names a setting, what it was and what it must be."""
    if not holds:
        raise ConfigError(f"{setting} is {value!r}; it must be {needed}")


def choice(kind: type[Choice], setting: str, value: str) -> Choice:
    """Return the member of a setting's names, from plain text.

    Raises:
        ConfigError: no member has this name; it lists those that there are.
    """
    known = [member.value for member in kind]
    require(value in known, setting, str(value), f"one of {', '.join(known)}")
    return kind(value)


def canonical_json(value: object) -> str:
    """Return JSON that is equal for equal values: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
