"""The `educe` command: its subcommands, and the one place where errors become exit statuses."""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Annotated

import typer

from educe import __version__, settings
from educe.cli import bench, cache, compile, demo, doctor, engines, inspect, predict, profile, verify
from educe.cli.screen import error_fields, errors, print_error, print_json
from educe.errors import EduceError, InternalError

app = typer.Typer(
    name="educe",
    help="A trained model, new input, the answer.\n\nStart with: educe predict MODEL INPUT",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (predict, inspect, verify, bench, compile, profile, engines, doctor, demo):
    app.command(command.__name__.rpartition(".")[2], epilog=command.EXAMPLES)(command.command)
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


def run() -> None:
    """Run the command line, and exit with 0, 2 (user error), 3 (unsupported) or 4 (internal fault)."""
    # Pillow warns of sloppy metadata in pictures that it reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if hasattr(signal, "SIGPIPE"):
        # Like other commands, end without a word when the reader of a pipe has gone.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        app()
    except EduceError as error:
        _report(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as fault:
        if settings.TRACEBACK.value():
            errors().print_exception()
        remedy = f"this is a fault in Educe: report it with {settings.TRACEBACK.variable}=1"
        _report(InternalError(f"{type(fault).__name__}: {fault}", remedy=remedy))
        sys.exit(InternalError.exit_status)


def _report(error: EduceError) -> None:
    """Print an error as the command line asks for results: as JSON, or in words."""
    if "--json" in sys.argv:
        print_json({"error": error_fields(error)}, sys.stderr)
    else:
        print_error(error)
