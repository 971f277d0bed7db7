"""The `educe` command's subcommands, each of whose modules is imported when it is needed."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from educe import __version__
from educe.cli.options import expanded
from educe.cli.usage import Subcommand

SUBCOMMANDS = {
    "predict": "Answer about INPUT with MODEL: classes, boxes, segments, values or tensors.",
    "generate": "Continue PROMPT with MODEL, a language model; the text is shown while it is written.",
    "chat": "Talk with MODEL, a language model made for it; /help says what else there is to say.",
    "score": "Say how likely each TEXT is to MODEL, a language model: its log-likelihood and perplexity.",
    "perplexity": (
        "Say how well MODEL, a language model, foretells FILE: its perplexity by token and by byte."
    ),
    "translate": "Translate each TEXT, and each line of each FILE, with MODEL.",
    "transcribe": "Write down what is said in each AUDIO with MODEL, in windows of 30 seconds.",
    "embed": "Make vectors of each TEXT, and of each line of each FILE, with MODEL.",
    "serve": "Put MODELs behind HTTP: the Open Inference Protocol, the OpenAI API, and a page to try them.",
    "top": "Show what the server at URL does: requests, times, batches, tokens, memory; Ctrl-C ends it.",
    "load": (
        "Load the server at URL as many clients would: requests come by chance, and never wait for others."
    ),
    "inspect": (
        "Show MODEL's signature, task, preprocessing and where it comes from, size, operations and hash."
    ),
    "verify": "Compare MODEL's outputs on two engines; if they part, name the first node, and exit with 1.",
    "bench": "Time MODEL on random input: engines take turns in one run, after their answers were compared.",
    "compile": (
        "Compile MODEL for this machine, and say what came of it; sizes that are unknown are taken as small."
    ),
    "profile": "Show the time of every kernel of MODEL, and how much of this machine's peak it reaches.",
    "engines": "List the engines with their versions and devices, and say which is the default.",
    "doctor": (
        "Show the machine, its measured peaks, the libraries installed, the settings and the limits in force."
    ),
    "demo": (
        "Run models of every task on real pictures, video, sounds, files, texts and tables; tell a story."
    ),
    "cache": "Show, explain or clear what is kept on disk: code and packed weights.",
}
"""The subcommands, in the order in which they are shown, and what is said of each beside the others.

Each is a module of this package, and what is said of it is how the module's own help begins.
"""


def subcommand(name: str) -> Any:
    """Return a subcommand with its options, as Typer makes it; its module is imported."""
    module = importlib.import_module(f"educe.cli.{name}")
    if hasattr(module, "app"):
        return typer.main.get_group(module.app)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(name, cls=Subcommand, epilog=module.EXAMPLES)(expanded(module.command))
    return typer.main.get_command(app)


class _Deferred(TyperCommand):
    """A subcommand of which only its name and help are known until it is called or completed."""

    def make_context(self, *arguments: Any, **extra: Any) -> Any:
        """Return the context of the whole subcommand, which runs there in place of this one."""
        assert self.name is not None
        return subcommand(self.name).make_context(*arguments, **extra)


class _Root(TyperGroup):
    """The command itself."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text in SUBCOMMANDS.items():
            self.add_command(_Deferred(name, help=text))


app = typer.Typer(
    name="educe",
    cls=_Root,
    help="A trained model, new input, the answer.\n\nStart with: educe predict MODEL INPUT",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
