"""``educe score``: how likely a language model finds texts."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from educe.cli import options
from educe.cli.completions import token_fields, token_text
from educe.cli.inputs import read_text_argument
from educe.cli.loading import ScoringOptions, model_fields, open_generator
from educe.cli.options import given
from educe.cli.screen import print_failure, print_json, print_table, shortened
from educe.errors import EduceError, OptionError
from educe.generate.generator import Generator
from educe.generate.stream import Score

EXAMPLES = """
[bold]Examples[/]\n
educe score zoo/stories260K "a little girl" "a purple banker" --after "Once upon a time there was "\n
educe score zoo/stories260K "Lily went to the park." --tokens --top 3
"""

# From this probability on a token is shown in the colour.
_COLOURS = ((0.5, "green"), (0.1, "yellow"), (0.01, "dark_orange"), (0.0, "red"))


def command(
    model: options.ModelArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT|FILE", help="Texts, files, or - for standard input.")
    ],
    *,
    after: Annotated[str, typer.Option("--after", metavar="TEXT", help="What stands before each text.")] = "",
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the chance of each token.")] = False,
    top: Annotated[
        int | None, typer.Option("--top", min=1, metavar="N", help="With --tokens: the N likeliest of each.")
    ] = None,
    loading: ScoringOptions,
    json: options.JsonOption = False,
) -> None:
    """Say how likely each TEXT is to MODEL, a language model: its log-likelihood and perplexity."""
    if top is not None and not tokens:
        raise OptionError("the likeliest are shown with each token", place="--top", remedy="add --tokens")
    chosen = given(top=top)
    status = 0
    with open_generator(model, loading) as generator:
        report = _Report(generator, tokens, json)
        for argument in texts:
            try:
                name, text = read_text_argument(argument, may_be_text=True)
                report.add(name, generator.score(text, after=after, **chosen))
            except EduceError as error:
                status = max(status, error.exit_status)
                print_failure(argument if json else shortened(argument), error, json=json)
    report.finish()
    if status:
        raise typer.Exit(status)


class _Report:
    """Prints scores: in JSON at once; for people as one table, or one of tokens for each text."""

    def __init__(self, generator: Generator, tokens: bool, json: bool) -> None:
        self._generator, self._tokens, self._json = generator, tokens, json
        self._table = Table()
        for column in ("tokens", "log-likelihood", "perplexity"):
            self._table.add_column(column, justify="right", no_wrap=True)
        self._table.add_column("text", overflow="fold")

    def add(self, name: str, score: Score) -> None:
        """Take the score of one text."""
        if self._json:
            print_json(self._fields(name, score))
            return
        numbers = (f"{len(score.choices):,}", f"{score.logprob:.3f}", f"{score.perplexity:.3f}")
        self._table.add_row(*numbers, Text(shortened(name)))
        if self._tokens:
            print_table(self._table_of_tokens(score))

    def finish(self) -> None:
        """Print what is told of all texts together."""
        if self._table.row_count:
            print_table(self._table)

    def _fields(self, name: str, score: Score) -> dict[str, Any]:
        tokens = {"tokens": token_fields(self._generator.tokenizer, score.choices)} if self._tokens else {}
        return {
            "input": name,
            "num_tokens": len(score.choices),
            "logprob": score.logprob,
            "perplexity": score.perplexity,
            "greedy": score.greedy,
            **tokens,
            "model": model_fields(self._generator),
        }

    def _table_of_tokens(self, score: Score) -> Table:
        table = Table("token", "chance", "likeliest")
        for choice in score.choices:
            chance = math.exp(choice.logprob or 0.0)
            style = next(style for least, style in _COLOURS if chance >= least)
            others = [self._spelled(token) for token, _ in choice.top if token != choice.token]
            table.add_row(Text(self._spelled(choice.token), style), f"{chance:7.2%}", Text(", ".join(others)))
        return table

    def _spelled(self, token: int) -> str:
        return repr(token_text(self._generator.tokenizer, token))
