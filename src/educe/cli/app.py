"""The `educe` command's subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from educe import __version__
from educe.cli import (
    bench,
    cache,
    chat,
    compile,
    demo,
    doctor,
    embed,
    engines,
    generate,
    inspect,
    perplexity,
    predict,
    profile,
    score,
    transcribe,
    translate,
    verify,
)
from educe.cli.options import expanded

_COMMANDS = (
    predict,
    generate,
    chat,
    score,
    perplexity,
    translate,
    transcribe,
    embed,
    inspect,
    verify,
    bench,
    compile,
    profile,
    engines,
    doctor,
    demo,
)

app = typer.Typer(
    name="educe",
    help="A trained model, new input, the answer.\n\nStart with: educe predict MODEL INPUT",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in _COMMANDS:
    app.command(command.__name__.rpartition(".")[2], epilog=command.EXAMPLES)(expanded(command.command))
app.add_typer(cache.app, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"educe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
