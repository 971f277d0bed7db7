"""The options of the commands that run language models: how they are held, how tokens are chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from educe import api
from educe.cli.options import named_path
from educe.cli.screen import errors, print_warning, working
from educe.generate.cache import CACHES
from educe.generate.embedding import Embedder
from educe.generate.generator import Generator
from educe.generate.precision import AUTO, PRECISIONS, ROUNDED
from educe.generate.transcription import Transcriber
from educe.generate.translation import Translator
from educe.limits import DEFAULT_LIMITS
from educe.media.text import read_text

_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _bytes(text: str) -> int:
    """Return the bytes that `text`, such as ``2GiB``, stands for."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([kKMG]?i?B?)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no amount of memory, such as 2GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


PrecisionOption = Annotated[
    str,
    typer.Option("--precision", metavar="NAME", help=f"How weights are held: {', '.join(PRECISIONS)}."),
]
DraftOption = Annotated[
    Path | None,
    typer.Option("--draft", parser=named_path, metavar="MODEL", help="A smaller model, which guesses."),
]
CacheOption = Annotated[
    str,
    typer.Option("--cache", metavar="NAME", help=f"How keys and values are held: {', '.join(CACHES)}."),
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", metavar="N", help="Most tokens of a prompt and its text; the model's own."),
]
MemoryOption = Annotated[
    int | None,
    typer.Option("--memory", parser=_bytes, metavar="SIZE", help="Memory of keys and values: 2GiB, 500MB."),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", help="Most tokens; the rest of the context.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", metavar="X", help="0 takes the likeliest token.")
]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", metavar="X", help="Only the likeliest, of this share together.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="What decides every draw; one by chance if absent.")
]

TopKOption = Annotated[
    int | None, typer.Option("--top-k", metavar="N", help="Only so many likeliest tokens.")
]
MinPOption = Annotated[
    float | None, typer.Option("--min-p", metavar="X", help="Only tokens of this share of the likeliest.")
]
TypicalPOption = Annotated[
    float | None, typer.Option("--typical-p", metavar="X", help="Only the most typical, of this share.")
]
RepetitionPenaltyOption = Annotated[
    float | None, typer.Option("--repetition-penalty", metavar="X", help="Divides what has been said.")
]
PresencePenaltyOption = Annotated[
    float | None, typer.Option("--presence-penalty", metavar="X", help="Taken off what has been said.")
]
FrequencyPenaltyOption = Annotated[
    float | None, typer.Option("--frequency-penalty", metavar="X", help="Taken off for each time.")
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the text; may be given again.")
]
CountOption = Annotated[int | None, typer.Option("--n", metavar="N", help="Texts for the prompt.")]
LogprobsOption = Annotated[
    int | None,
    typer.Option("--logprobs", metavar="N", help="In JSON: each token's chance, and the N likeliest."),
]
JsonSchemaOption = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|TEXT", help="The text is JSON of a schema."),
]
RegexOption = Annotated[
    str | None, typer.Option("--regex", metavar="PATTERN", help="The text matches this pattern.")
]
ChoiceOption = Annotated[
    list[str] | None, typer.Option("--choice", metavar="TEXT", help="The text is one of those given.")
]
GrammarOption = Annotated[
    Path | None,
    typer.Option("--grammar", parser=named_path, metavar="FILE", help="The text follows this grammar."),
]


def open_generator(
    model: Path,
    *,
    precision: str = AUTO,
    cache: str = "bf16",
    context: int | None = None,
    memory: int | None = None,
    threads: int | None = None,
    draft: Path | None = None,
) -> Generator:
    """Return the language model at `model`, ready to write."""
    with working(f"loading {model}") as say:
        generator = api.generator(
            model,
            precision=precision,
            cache=cache,
            context=context,
            memory_bytes=memory,
            threads=threads,
            draft=draft,
            progress=lambda done, what: say(f"packing {model}, {done:.0%}: {what}"),
        )
    for note in generator.notes:
        if note != ROUNDED:
            print_warning(note)
        elif errors().is_terminal:
            errors().print(f"[dim]{note}[/]")
    return generator


def given(**options: Any) -> dict[str, Any]:
    """Return the options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def text_or_file(value: str | None) -> str | None:
    """Return a JSON schema that is given as text, or the content of the file that is named."""
    if value is None or value.lstrip().startswith("{"):
        return value
    return read_text(named_path(value), DEFAULT_LIMITS)


def model_fields(model: Generator | Translator | Transcriber | Embedder) -> Mapping[str, str]:
    """Return what answers say of the model."""
    checkpoint = model.checkpoint
    return {"name": checkpoint.path.name, "sha256": checkpoint.digest.hexdigest()}
