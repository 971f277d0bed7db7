"""``educe generate``: a language model continues a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from educe.cli import options
from educe.cli.completions import completion_fields, follow, print_summary, write_text
from educe.cli.inputs import standard_input_text
from educe.cli.loading import WritingOptions, open_generator
from educe.cli.sampling import TextOptions
from educe.cli.screen import print_json
from educe.errors import OptionError
from educe.generate.generator import Generator
from educe.generate.stream import Completion, Piece
from educe.limits import DEFAULT_LIMITS
from educe.media.text import read_text

EXAMPLES = """
[bold]Examples[/]\n
educe generate zoo/stories260K "Once upon a time" --max-tokens 100\n
educe generate zoo/stories260K "Once upon a time" --temperature 0.8 --seed 1 --n 3\n
echo "Tom had a" | educe generate zoo/stories260K - --stop . --json\n
educe generate zoo/stories260K --prompts prompts.txt --max-tokens 50 > answers.jsonl
"""

_INTERRUPTED = 130


def command(
    model: options.ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - for standard input.")
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", parser=options.named_path, metavar="FILE", help="Continue what is in a file."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="Continue each line of a file: text, or JSON."),
    ] = None,
    text: TextOptions,
    loading: WritingOptions,
    json: options.JsonOption = False,
) -> None:
    """Continue PROMPT with MODEL, a language model; the text is shown while it is written."""
    chosen = text.keywords()
    if "logprobs" in chosen and not (json or prompts):
        raise OptionError("log-probabilities are shown in JSON alone", remedy="add --json")
    start = _prompt(prompt, file, prompts)
    with open_generator(model, loading) as generator:
        if prompts is not None:
            from educe.cli.prompts import write_all

            status = write_all(generator, prompts, chosen)
        else:
            status = _write(generator, start, chosen, json)
    if status:
        raise typer.Exit(status)


def _prompt(prompt: str | None, file: Path | None, prompts: str | None) -> str:
    """Return the text to continue; it is of no use where there are many."""
    if sum(source is not None for source in (prompt, file, prompts)) != 1:
        raise OptionError(
            "a prompt is expected, in one place",
            place="PROMPT",
            remedy='give a text, such as "Once upon a time", - for standard input, --file or --prompts',
        )
    if file is not None:
        return read_text(file, DEFAULT_LIMITS).removesuffix("\n")
    return standard_input_text().removesuffix("\n") if prompt == "-" else prompt or ""


def _write(generator: Generator, prompt: str, chosen: dict[str, Any], json: bool) -> int:
    streamed = not json and chosen.get("n", 1) == 1
    with generator.stream(prompt, **chosen) as stream:
        completion = follow(stream, _show if streamed else _keep)
    if json:
        print_json({"prompt": prompt, **completion_fields(generator, completion)})
    elif streamed:
        write_text("" if completion.text.endswith("\n") else "\n")
    else:
        _print_texts(completion)
    if not json:
        print_summary(completion)
    return _INTERRUPTED if completion.finish_reason == "cancelled" else 0


def _show(piece: Piece) -> None:
    write_text(piece.text)


def _keep(piece: Piece) -> None:
    """Show nothing: what is printed is printed whole."""


def _print_texts(completion: Completion) -> None:
    for number, output in enumerate(completion.outputs, 1):
        write_text(f"--- {number} of {len(completion.outputs)}\n{output.text}")
        write_text("" if output.text.endswith("\n") else "\n")
