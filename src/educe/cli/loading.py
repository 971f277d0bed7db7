"""The doors of language models on the command line: their options, and their progress on screen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from educe import api
from educe.cli.options import OptionGroup, ThreadsOption, named_path, number
from educe.cli.screen import errors, print_warning, working
from educe.generate.cache import CACHES
from educe.generate.precision import PRECISIONS, ROUNDED

if TYPE_CHECKING:
    from educe.generate.embedding import Embedder
    from educe.generate.generator import Generator
    from educe.generate.parameters import Progress
    from educe.generate.transcription import Transcriber
    from educe.generate.translation import Translator

_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size_bytes(text: str) -> int:
    """Return the bytes that `text`, such as ``2GiB``, stands for."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([kKMG]?i?B?)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no amount of memory, such as 2GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


@dataclass(frozen=True, kw_only=True)
class LoadingOptions(OptionGroup):
    """The options of every language model; the names are the keywords of the doors in `educe.api`."""

    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="NAME", help=f"How weights are held: {', '.join(PRECISIONS)}."),
    ] = None
    threads: ThreadsOption = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(LoadingOptions):
    """Those of embedders."""

    batch_tokens: Annotated[int | None, number("How many tokens run at once.")] = None


@dataclass(frozen=True, kw_only=True)
class CachingOptions(LoadingOptions):
    """Those of the models that keep keys and values."""

    memory_bytes: Annotated[
        int | None,
        typer.Option(
            "--memory", parser=size_bytes, metavar="SIZE", help="Memory of keys and values: 2GiB, 500MB."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(OptionGroup):
    """What bounds the texts of generators, and what is kept of them."""

    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="NAME", help=f"How keys and values are held: {', '.join(CACHES)}."),
    ] = None
    context: Annotated[int | None, number("Most tokens of a prompt and its text; the model's own.")] = None
    max_sequences: Annotated[int | None, number("Most texts that run at once.")] = None


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(ReadingOptions, CachingOptions):
    """Those of generators that read."""


@dataclass(frozen=True, kw_only=True)
class GuessingOptions(OptionGroup):
    """How generators write."""

    chat_template: Annotated[
        Path | None,
        typer.Option(
            "--chat-template",
            parser=named_path,
            metavar="FILE",
            help="A Jinja template of conversations, instead of the model's own.",
        ),
    ] = None
    lookup: Annotated[
        bool | None,
        typer.Option(
            "--lookup/--no-lookup",
            help="Guess tokens from what stood before, and verify them; yes if absent.",
        ),
    ] = None
    draft: Annotated[
        Path | None,
        typer.Option("--draft", parser=named_path, metavar="MODEL", help="A smaller model, which guesses."),
    ] = None
    num_draft_tokens: Annotated[int | None, number("How many tokens it guesses.")] = None


@dataclass(frozen=True, kw_only=True)
class WritingOptions(GuessingOptions, ScoringOptions):
    """Those of generators that write."""


def open_generator(model: Path, options: ScoringOptions = ScoringOptions()) -> Generator:
    """Return the language model at `model`, ready to write."""
    with _loading(model) as progress:
        generator = api.generator(model, progress=progress, **options.keywords())
    for note in generator.notes:
        if note != ROUNDED:
            print_warning(note)
        elif errors().is_terminal:
            errors().print(f"[dim]{note}[/]")
    return generator


def open_translator(model: Path, options: CachingOptions = CachingOptions()) -> Translator:
    """Return the translator at `model`."""
    with _loading(model) as progress:
        return api.translator(model, progress=progress, **options.keywords())


def open_transcriber(model: Path, options: CachingOptions) -> Transcriber:
    """Return the transcriber at `model`."""
    with _loading(model) as progress:
        return api.transcriber(model, progress=progress, **options.keywords())


def open_embedder(model: Path, options: EmbeddingOptions) -> Embedder:
    """Return the embedder at `model`."""
    with _loading(model) as progress:
        return api.embedder(model, progress=progress, **options.keywords())


@contextmanager
def _loading(model: Path) -> Iterator[Progress]:
    with working(f"loading {model}") as say:
        yield lambda done, what: say(f"packing {model}, {done:.0%}: {what}")


def model_fields(model: Generator | Translator | Transcriber | Embedder) -> Mapping[str, str]:
    """Return what answers say of the model."""
    checkpoint = model.checkpoint
    return {"name": checkpoint.path.name, "sha256": checkpoint.digest.hexdigest()}
