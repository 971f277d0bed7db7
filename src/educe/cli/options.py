"""The arguments and options that several commands take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def named_path(text: str) -> Path:
    """Return the path that `text` names; an empty one would be the current folder, which nobody meant."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


@dataclass(frozen=True)
class OptionGroup:
    """Options that several commands take: each field is one, named as the keyword in Python is."""

    def keywords(self) -> dict[str, Any]:
        """Return the options that were given, by their names in Python."""
        return given(**vars(self))


def number(help: str) -> Any:
    """Return an option that takes a whole number, and is named as its field is."""
    return typer.Option(metavar="N", help=help)


def amount(help: str) -> Any:
    """Return an option that takes any number, and is named as its field is."""
    return typer.Option(metavar="X", help=help)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that have a value; a list has one if it has an element."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes, for each parameter that is an `OptionGroup`, the options of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _is_group(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, OptionGroup)


def _options_of(group: type[OptionGroup]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


ModelArgument = Annotated[
    Path, typer.Argument(parser=named_path, metavar="MODEL", help="A model file, or the folder of one.")
]
CardOption = Annotated[
    str | None,
    typer.Option("--card", metavar="FILE|PRESET", help="A card, or a preset, instead of the model's own."),
]
TaskOption = Annotated[str | None, typer.Option("--task", help="A task, instead of the card's.")]
EngineOption = Annotated[str | None, typer.Option("--engine", help="The engine; `educe engines` lists them.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Threads of one run; one per usable core if absent."),
]
BatchOption = Annotated[int | None, typer.Option("--batch", min=1, metavar="N", help="Inputs run at once.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
NumBeamsOption = Annotated[
    int | None,
    typer.Option(
        "--num-beams", min=1, metavar="N", help="Texts continued side by side; the model's own number."
    ),
]
SaveTextsOption = Annotated[
    Path | None,
    typer.Option(
        "--save",
        parser=named_path,
        metavar="DIR",
        help="Also write what comes of each FILE into this folder.",
    ),
]
