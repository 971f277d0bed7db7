"""``educe perplexity``: how well a language model foretells long texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from educe.cli import options
from educe.cli.inputs import read_text_argument
from educe.cli.loading import ScoringOptions, model_fields, open_generator
from educe.cli.screen import print_failure, print_json, print_table
from educe.cli.tracking import progress_bar
from educe.errors import EduceError, OptionError
from educe.generate.generator import Generator
from educe.generate.perplexity import Perplexity

EXAMPLES = """
[bold]Examples[/]\n
educe perplexity zoo/stories260K stories.txt\n
educe perplexity zoo/stories260K stories.txt --window 256 --stride 64 --json
"""


def command(
    model: options.ModelArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Texts, or - for standard input.")],
    *,
    window: Annotated[int | None, options.number("Most tokens read at once; the context.")] = None,
    stride: Annotated[int | None, options.number("Tokens counted in each; half a window.")] = None,
    loading: ScoringOptions,
    json: options.JsonOption = False,
) -> None:
    """Say how well MODEL, a language model, foretells FILE: its perplexity by token and by byte.

    A long text is read in windows that overlap, so that each token is foretold from many before it.
    """
    status = 0
    table = _new_table()
    with open_generator(model, loading) as generator:
        for name in files:
            try:
                found = _measure(generator, name, window, stride)
            except EduceError as error:
                # A fault of the options is one of the command, not of each text.
                if isinstance(error, OptionError):
                    raise
                status = max(status, error.exit_status)
                print_failure(name, error, json=json)
            else:
                if json:
                    print_json({**_fields(name, found), "model": model_fields(generator)})
                else:
                    table.add_row(*_cells(found), Text(name))
    if table.row_count:
        print_table(table)
    if status:
        raise typer.Exit(status)


def _measure(generator: Generator, name: str, window: int | None, stride: int | None) -> Perplexity:
    text = read_text_argument(name, may_be_text=False)[1]
    with progress_bar(True) as progress:
        bar = progress.add_task(f"reading {name}", total=None, rate=0.0)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, rate=progress.tasks[bar].speed or 0.0)

        return generator.perplexity(text, window=window, stride=stride, progress=show)


def _new_table() -> Table:
    table = Table()
    for column in ("tokens", "perplexity", "± error", "of a byte", "bits/byte"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("text", overflow="fold")
    return table


def _cells(found: Perplexity) -> tuple[str, ...]:
    numbers = (found.per_token, found.standard_error, found.per_byte, found.bits_per_byte)
    return f"{found.num_tokens:,}", *(f"{number:.4f}" for number in numbers)


def _fields(name: str, found: Perplexity) -> dict[str, Any]:
    return {
        "input": name,
        "num_tokens": found.num_tokens,
        "num_bytes": found.num_bytes,
        "logprob": float(found.logprobs.sum()),
        "perplexity": {
            "per_token": found.per_token,
            "standard_error": found.standard_error,
            "per_byte": found.per_byte,
        },
        "bits_per_byte": found.bits_per_byte,
    }
