"""A pipeline function made from its settings: parameters, defaults, descriptions, run form."""

import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from kfp import dsl

from chexradinet import __version__
from chexradinet.config import Settings
from chexradinet.config.parameters import Parameter, flat


def parameters_of(model: type[Settings]) -> dict[str, Parameter]:
    """Return the parameters that a pipeline of these settings has, by name."""
    return {name: one for name, one in flat(model).items() if not one.internal}


def described_pipeline(
    body: Callable[[Any], Any],
    model: type[Settings],
    *,
    name: str,
    display_name: str,
    output: type | None = None,
    defaults: Mapping[str, Any] | None = None,
    note: str = "",
) -> Callable[..., Any]:
    """Return a pipeline that has every setting of a model as a parameter.

    Args:
        body: Called with a namespace of the parameters; its docstring is the pipeline's summary.
        model: Settings of the pipeline.
        name: Name of the pipeline.
        display_name: Name in the web interface.
        output: Type of what the pipeline returns.
        defaults: Defaults that differ from the settings', by name.
        note: A sentence for the description that only the compiler knows.
    """
    known = dict(sorted(parameters_of(model).items(), key=lambda item: item[1].default is not None))

    def pipeline(*channels: Any) -> Any:  # noqa: ANN401 - pipeline channels
        return body(SimpleNamespace(**dict(zip(known, channels, strict=True))))

    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_declared(one, defaults or {}) for one in known.values()],
        return_annotation=output,
    )
    # The run form has no room for descriptions, so the pipeline's own has all of them as a table.
    rows = [f"| {one.name} | {one.description} |" for one in known.values()]
    summary = f"{inspect.getdoc(body)} {note}".strip()
    table = ["", "| parameter | meaning |", "|---|---|", *rows, "", f"Version {__version__}."]
    arguments = [f"    {one.name}: {one.description}" for one in known.values()]
    pipeline.__doc__ = "\n".join([summary, "", "Args:", *arguments])
    decorate = dsl.pipeline(
        name=name, display_name=display_name, description="\n".join([summary, *table])
    )
    return decorate(pipeline)  # type: ignore[no-any-return]


def _declared(one: Parameter, defaults: Mapping[str, Any]) -> inspect.Parameter:
    default = defaults.get(one.name, one.default)
    return inspect.Parameter(
        one.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=inspect.Parameter.empty if default is None else default,
        annotation=one.kind,
    )
