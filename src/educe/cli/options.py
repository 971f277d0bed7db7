"""The arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def named_path(text: str) -> Path:
    """Return the path that `text` names; an empty one would be the current folder, which nobody meant."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


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
    int | None, typer.Option("--threads", min=1, help="Threads of one run; one per usable core if absent.")
]
BatchOption = Annotated[int | None, typer.Option("--batch", min=1, help="Inputs run at once.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
BeamsOption = Annotated[
    int | None,
    typer.Option("--beams", min=1, metavar="N", help="Texts continued side by side; the model's own number."),
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
