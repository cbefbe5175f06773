"""The base of every settings model, and how settings become text and digests.

A setting's name, default, bounds and description are written once, in a model of this package.
Options of the command line, parameters of the pipelines, the check before a run and the records in
artifacts are made from them.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from chexradinet.errors import ConfigError

_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a JSON object",
    list: "a JSON list",
    tuple: "a list",
}


class Settings(BaseModel):
    """Frozen settings, checked when they are made.

    Raises:
        ConfigError: one or more values are out of bounds, of a wrong type or unknown; the message
            names each of them, what it was and what it must be.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        populate_by_name=True,
        loc_by_alias=False,
    )

    def __init__(self, /, **values: Any) -> None:  # noqa: ANN401 - each field has its own type
        """Check all values at once."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = [_explained(type(self), fault) for fault in error.errors()]
            raise ConfigError("; ".join(dict.fromkeys(faults))) from None

    def changed(self, **values: Any) -> Self:  # noqa: ANN401 - each field has its own type
        """Return these settings with some values replaced, checked again."""
        return type(self)(**{**dict(self), **values})

    def record(self) -> dict[str, Any]:
        """Return JSON-ready values under the names that stored artifacts use."""
        return self.model_dump(mode="json", by_alias=True)

    def struct(self) -> dict[str, Any]:
        """Return JSON-ready values under the settings' own names; `Model(**values)` reads them."""
        return self.model_dump(mode="json")


def internal(default: Any, **bounds: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Return a field that code and stored records know, but neither pipelines nor commands show."""
    return Field(default, json_schema_extra={"internal": True}, **bounds)


def stored_as(name: str, default: Any, **bounds: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Return a field that stored records keep under another name, which is read as well."""
    return Field(default, validation_alias=name, serialization_alias=name, **bounds)


def is_internal(field: FieldInfo) -> bool:
    """Return whether neither pipelines nor commands show a field."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("internal"))


def leaves(model: type[Settings]) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield the path and the field of every setting of a model, in order, nested ones included."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from (((name, *path), leaf) for path, leaf in leaves(kind))
        else:
            yield (name,), field


def needed(field: FieldInfo) -> str:
    """Return what a field's value must be, as error messages and help texts put it."""
    kind = field.annotation
    if isinstance(field.json_schema_extra, dict) and "needed" in field.json_schema_extra:
        return str(field.json_schema_extra["needed"])
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return f"one of {', '.join(member.value for member in kind)}"
    bounds = {
        name: getattr(part, name)
        for part in field.metadata
        for name in ("gt", "ge", "lt", "le", "min_length")
        if getattr(part, name, None) is not None
    }
    return _interval(bounds) or _KINDS[getattr(kind, "__origin__", kind)]


def _interval(bounds: dict[str, Any]) -> str:
    if "min_length" in bounds:
        return "given"
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        return f"in {'[' if 'ge' in bounds else '('}{low}, {high}{']' if 'le' in bounds else ')'}"
    if low is not None:
        return f"{'at least' if 'ge' in bounds else 'above'} {low}"
    return "" if high is None else f"{'at most' if 'le' in bounds else 'below'} {high}"


def _explained(model: type[Settings], fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    names = [part for part in fault["loc"] if isinstance(part, str)]
    known = {path[-1]: field for path, field in leaves(model)}
    name = next((part for part in reversed(names) if part in known), names[-1] if names else "")
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], known, n=1)
        return f"unknown setting {names[-1]!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    if fault["type"] == "missing":
        return f"{name} is missing; give it a value"
    wanted = needed(known[name]) if name in known else fault["msg"]
    return f"{name} is {fault['input']!r}; it must be {wanted}"


def require(holds: bool, setting: str, value: object, needed: str) -> None:
    """Raise a `ConfigError` that names a setting, what it was and what it must be."""
    if not holds:
        raise ConfigError(f"{setting} is {value!r}; it must be {needed}")


def canonical_json(value: object) -> str:
    """Return JSON that is equal for equal values: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
