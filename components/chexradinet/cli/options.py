"""Options of a command, made from a settings model: name, default, bounds and help."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from chexradinet.config import Settings
from chexradinet.config.base import leaves
from chexradinet.config.parameters import Parameter, flat, nested


def with_settings(
    model: type[Settings],
    **defaults: object,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting of a model.

    The command takes the model as its keyword argument `settings`.

    Args:
        model: Settings of the command's stage.
        defaults: Defaults that differ from the model's, by name.
    """
    kinds = {path[-1]: field.annotation for path, field in leaves(model)}
    shown = {name: one for name, one in flat(model).items() if not one.internal}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.name != "settings"]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, ... if one.default is None else one.default),
                annotation=Annotated[_option_kind(kinds[name], one), _option(one)],
            )
            for name, one in shown.items()
        ]

        def run(**values: Any) -> None:  # noqa: ANN401 - each option has its own type
            given = {name: values.pop(name) for name in shown}
            command(**values, settings=nested(model, given))

        keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=[*keyword_only, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*keyword_only, *made]}
        return run

    return decorate


def _option_kind(kind: Any, one: Parameter) -> Any:  # noqa: ANN401 - any annotation
    return kind if isinstance(kind, type) and issubclass(kind, StrEnum) else one.kind


def _option(one: Parameter) -> Any:  # noqa: ANN401 - typer's OptionInfo
    # Typer shows the names of a choice itself, and the type of a number.
    bounds = one.needed if one.kind in (int, float) and one.needed[:2] != "a " else ""
    return typer.Option(help=f"{one.description} {bounds.capitalize()}".strip())
