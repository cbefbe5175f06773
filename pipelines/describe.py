"""What the run form shows: it has no room for a parameter's description, so the pipeline has it."""

from collections.abc import Callable
from typing import Any

from docstring_parser import parse

from chexradinet import __version__


def description_of(function: Callable[..., Any], note: str = "") -> str:
    """Return a pipeline's description: its first sentence, a table of its parameters, the version.

    Args:
        function: Pipeline function with a Google docstring that describes every parameter.
        note: A sentence that only the compiler knows.
    """
    parsed = parse(function.__doc__ or "")
    rows = [f"| {one.arg_name} | {one.description} |" for one in parsed.params]
    lines = [
        f"{parsed.short_description} {note}".strip(),
        "",
        "| parameter | meaning |",
        "|---|---|",
    ]
    return "\n".join([*lines, *rows, "", f"Version {__version__}."])
