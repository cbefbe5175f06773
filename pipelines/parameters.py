"""Run-time parameters of a compiled pipeline, from `key=value` words to checked values."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import yaml

from chexradinet import __version__
from chexradinet.config.parameters import (
    NightlySettings,
    Rounds,
    Shape,
    StudySettings,
    TrainingSettings,
    nested,
)
from chexradinet.errors import ConfigError

TRAINING, NIGHTLY, STUDY = "chexradinet-training", "chexradinet-nightly", "chexradinet-study"
"""Names of the pipelines."""

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
        ConfigError: there is no such file, or it is not a compiled pipeline.
    """
    return load_documents(path)[0]


def load_documents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the specification of a compiled pipeline and its platform document, or an empty one.

    Raises:
        ConfigError: there is no such file, or it is not a compiled pipeline.
    """
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_LOADER))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; run `chexradinet compile` first") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file; compile the pipeline again") from error
    document, platform = [*documents, None, None][:2]
    if not isinstance(document, dict) or "pipelineInfo" not in document:
        raise ConfigError(f"{path} is not a compiled pipeline; compile it again")
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


def asked_shape(words: Iterable[str], file: Path | None = None) -> Shape:
    """Return the smallest shape of a training pipeline that a run of these settings fits.

    Raises:
        ConfigError: the settings cannot be read, or ask for more rounds than there can be.
    """
    given = _given(words, file)
    kinds = {"rounds": "NUMBER_INTEGER", "compare_arms": "BOOLEAN"}
    typed = {name: _typed(name, kinds[name], given[name]) for name in kinds if name in given}
    asked = nested(Rounds, typed)
    return Shape(max_rounds=asked.rounds, has_arms=asked.compare_arms)


def parse_settings(
    document: dict[str, Any], words: Iterable[str], file: Path | None = None
) -> dict[str, Value]:
    """Return the values that a file and `name=value` words give to a pipeline's parameters.

    Args:
        document: Specification of the compiled pipeline.
        words: Parameters as `name=value`; they win over the file.
        file: YAML mapping of names to values.

    Raises:
        ConfigError: a word is malformed, a name unknown, a value of the wrong type or out of
            bounds, a parameter without a default is missing, or the compiled pipeline has no tasks
            for what is asked. All of it is known before anything runs.
    """
    known = definitions(document)
    values: dict[str, Value] = {}
    for name, value in _given(words, file).items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"unknown parameter {name!r}; {hint}known are {', '.join(sorted(known))}"
            )
        values[name] = _typed(name, known[name]["parameterType"], value)
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
    _check(document, values)
    return values


def _check(document: dict[str, Any], values: dict[str, Value]) -> None:
    """Refuse what the first step of a run would refuse; write out findings of a file."""
    defaults = {
        name: one["defaultValue"]
        for name, one in definitions(document).items()
        if "defaultValue" in one
    }
    complete = {**defaults, **values}
    name = document["pipelineInfo"]["name"]
    if name != TRAINING:
        nested(NightlySettings if name == NIGHTLY else StudySettings, complete)
        return
    settings = nested(TrainingSettings, complete)
    if values.get("findings"):
        values["findings"] = ",".join(settings.ingest.findings)
    compiled = document["root"]["dag"]["tasks"]["configure"]["inputs"]["parameters"]
    shape = {
        name: compiled[name]["runtimeValue"]["constant"] for name in ("max_rounds", "has_arms")
    }
    Shape(max_rounds=int(shape["max_rounds"]), has_arms=shape["has_arms"]).check(settings.rounds)


def _given(words: Iterable[str], file: Path | None) -> dict[str, Any]:
    """Return what was given by name: texts of words, and values of the file as they are."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
            values = yaml.load(text, Loader=_LOADER) or {}  # noqa: S506 - a safe loader
        except OSError as error:
            raise ConfigError(f"{file} cannot be read ({error}); check --config") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not YAML; it must map names to values") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{file} is not a mapping of names to values")
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {word!r} is malformed; it must read name=value")
        values[name] = text
    return {str(name): value for name, value in values.items()}


def _typed(name: str, kind: str, value: Any) -> Value:  # noqa: ANN401 - as YAML or a word has it
    if kind == "STRING":
        return str(value)
    found: Any = value
    if isinstance(value, str):
        try:
            found = json.loads(value.lower() if kind == "BOOLEAN" else value)
        except json.JSONDecodeError:
            found = None
    if type(found) is int and kind == "NUMBER_DOUBLE":
        found = float(found)
    if type(found) is not _TYPES[kind]:
        raise ConfigError(f"{name} is {value!r}; it must be {_KINDS[kind]}")
    return cast("Value", found)
