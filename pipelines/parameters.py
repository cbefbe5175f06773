"""Run-time parameters of a compiled pipeline, from `key=value` words to checked values."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from chexradinet import __version__
from chexradinet.errors import ConfigError

Value = str | int | float | bool | list[Any] | dict[str, Any]

# libyaml's safe loader is ten times as fast; some builds of PyYAML lack it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_KINDS = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a JSON list",
    "STRUCT": "a JSON object",
}

_TYPES = {
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": float,
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


def load_compiled(path: Path) -> dict[str, Any]:
    """Return the pipeline specification of a compiled pipeline.

    Raises:
        ConfigError: there is no such file, or it is no compiled pipeline.
    """
    return load_documents(path)[0]


def load_documents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the specification of a compiled pipeline and its platform document, or an empty one.

    Raises:
        ConfigError: there is no such file, or it is no compiled pipeline.
    """
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_LOADER))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; run `python -m pipelines compile` first") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file; compile the pipeline again") from error
    document, platform = [*documents, None, None][:2]
    if not isinstance(document, dict) or "pipelineInfo" not in document:
        raise ConfigError(f"{path} is no compiled pipeline; compile it again")
    return document, platform if isinstance(platform, dict) else {}


def require_version(document: dict[str, Any], path: Path) -> None:
    """Refuse a pipeline that another version of this project compiled.

    Raises:
        ConfigError: it names both versions.
    """
    found = document.get("pipelineInfo", {}).get("description", "").rpartition("Version ")[2]
    if found.strip(". \n") != __version__:
        raise ConfigError(
            f"{path} was compiled by version {found.strip() or 'unknown'}, but this is version "
            f"{__version__}; compile it again"
        )


def definitions(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the definition of each parameter of a compiled pipeline, by name."""
    found: dict[str, dict[str, Any]] = document["root"]["inputDefinitions"]["parameters"]
    return found


def parse_settings(document: dict[str, Any], words: Iterable[str]) -> dict[str, Value]:
    """Return the values that `key=value` words give to a pipeline's parameters.

    Raises:
        ConfigError: a word is malformed, a name unknown, a value of the wrong type, or a parameter
            without a default is missing. All of it is known before anything runs.
    """
    known = definitions(document)
    values: dict[str, Value] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {word!r} is malformed; it must read name=value")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"unknown parameter {name!r}; {hint}known are {', '.join(sorted(known))}"
            )
        values[name] = _parse(name, known[name]["parameterType"], text)
    missing = [
        name
        for name, definition in known.items()
        if name not in values
        and "defaultValue" not in definition
        and not definition.get("isOptional")
    ]
    if missing:
        wanted = " ".join(f"--set {name}=…" for name in missing)
        raise ConfigError(f"no value for {', '.join(missing)}; add {wanted}")
    return values


def _parse(name: str, kind: str, text: str) -> Value:
    if kind == "STRING":
        return text
    try:
        value: Value = json.loads(text.lower() if kind == "BOOLEAN" else text)
    except json.JSONDecodeError:
        value = ""
    if isinstance(value, int) and not isinstance(value, bool) and kind == "NUMBER_DOUBLE":
        value = float(value)
    if type(value) is not _TYPES[kind]:
        raise ConfigError(f"{name} is {text!r}; it must be {_KINDS[kind]}")
    return value
