"""HTML reports from Jinja2 templates: self-contained files, no script, no request to anywhere.

The templates escape everything that comes from outside.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chexradinet.artifacts import writing_file
from chexradinet.evaluation import interval, signed

NOT_DEFINED = "n/d"
"""Text in place of a number that is not defined."""


def write_page(path: Path, template: str, **content: Any) -> None:  # noqa: ANN401 - for a template
    """Write one self-contained HTML file, atomically.

    Args:
        path: The HTML file.
        template: Name of the template, without `.html.j2`.
        content: Names that the template uses.
    """
    text = _TEMPLATES.get_template(f"{template}.html.j2").render(content)
    with writing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with fixed decimals, or `n/d` if it is not defined."""
    return NOT_DEFINED if value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """Return a count with thousands separators, or `n/d` if it is not defined."""
    return NOT_DEFINED if value is None else f"{int(value):,}"


def readable(names: str | Sequence[str]) -> str:
    """Return a finding's name, or several, as text is set."""
    listed = names if isinstance(names, str) else ", ".join(names)
    return listed.replace("_", " ")


def _at(holder: Mapping[str, Any] | None, *keys: str) -> Any:  # noqa: ANN401 - a value of JSON
    """Return a value of nested mappings, None if a key on the way is missing or null."""
    for key in keys:
        holder = (holder or {}).get(key)
    return holder


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _percent(value: float | None, digits: int = 1) -> str:
    return NOT_DEFINED if value is None else f"{value:.{digits}%}"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {
    "at": _at,
    "count": count,
    "data_uri": _data_uri,
    "interval": interval,
    "number": number,
    "percent": _percent,
    "readable": readable,
    "signed": signed,
}
