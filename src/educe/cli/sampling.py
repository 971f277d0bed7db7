"""The options of a text that is written: how its tokens are chosen, when it ends, what form it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from educe.cli.options import OptionGroup, amount, named_path, number
from educe.errors import OptionError
from educe.limits import DEFAULT_LIMITS
from educe.media.text import read_text


def _file_text(name: str) -> str:
    """Return the content of a file."""
    return read_text(named_path(name), DEFAULT_LIMITS)


def _schema(given: str) -> str:
    """Return a JSON schema that is given as text, or the content of the file that is named."""
    return given if given.lstrip().startswith("{") else _file_text(given)


def _bias(text: str) -> tuple[int, float]:
    """Return the token and the bias of ``7=-100``."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise OptionError(
            f"{text!r} is no token and its bias", place="logit_bias", remedy="such as 7=-100"
        ) from None


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(OptionGroup):
    """The options of one text; the names are the keywords of `Generator.stream`."""

    max_tokens: Annotated[int | None, number("Most tokens; the rest of the context.")] = None
    min_tokens: Annotated[int | None, number("Fewest tokens before one that ends it.")] = None
    temperature: Annotated[float | None, amount("0 takes the likeliest token.")] = None
    top_k: Annotated[int | None, number("Only so many likeliest tokens.")] = None
    top_p: Annotated[float | None, amount("Only the likeliest, of this share together.")] = None
    min_p: Annotated[float | None, amount("Only tokens of this share of the likeliest.")] = None
    typical_p: Annotated[float | None, amount("Only the most typical, of this share.")] = None
    repetition_penalty: Annotated[float | None, amount("Divides what has been said.")] = None
    presence_penalty: Annotated[float | None, amount("Taken off what has been said.")] = None
    frequency_penalty: Annotated[float | None, amount("Taken off for each time.")] = None
    logit_bias: Annotated[
        list[str] | None,
        typer.Option("--logit-bias", metavar="TOKEN=X", help="Added to a token's logit; may be given again."),
    ] = None
    seed: Annotated[int | None, number("What decides every draw; one by chance if absent.")] = None
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the text; may be given again.")
    ] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="A token that ends the text is one like any other.")
    ] = False

    def keywords(self) -> dict[str, Any]:
        """Return the options that were given, as `Generator.stream` takes them."""
        found = super().keywords()
        if self.logit_bias:
            found["logit_bias"] = dict(map(_bias, self.logit_bias))
        return found


@dataclass(frozen=True, kw_only=True)
class TextOptions(AnswerOptions):
    """Those of texts that need not be one answer on a screen."""

    n: Annotated[int | None, number("Texts for the prompt.")] = None
    logprobs: Annotated[int | None, number("In JSON: each token's chance, and the N likeliest.")] = None
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema", parser=_schema, metavar="FILE|TEXT", help="The text is JSON of a schema."
        ),
    ] = None
    json_object: Annotated[bool, typer.Option("--json-object", help="The text is a JSON object.")] = False
    regex: Annotated[
        str | None, typer.Option("--regex", metavar="PATTERN", help="The text matches this pattern.")
    ] = None
    choice: Annotated[
        list[str] | None, typer.Option("--choice", metavar="TEXT", help="The text is one of those given.")
    ] = None
    grammar: Annotated[
        str | None,
        typer.Option("--grammar", parser=_file_text, metavar="FILE", help="The text follows this grammar."),
    ] = None
