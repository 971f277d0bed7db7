"""``educe embed``: texts to vectors, and how alike they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from educe.cli import options
from educe.cli.completions import write_text
from educe.cli.inputs import Line, num_lines, text_lines
from educe.cli.loading import EmbeddingOptions, model_fields, open_embedder
from educe.cli.options import given
from educe.cli.screen import print_failure, print_json, print_table, shortened
from educe.cli.tracking import progress_bar
from educe.errors import EduceError, InputError, OptionError
from educe.generate.embedding import Embedder

EXAMPLES = """
[bold]Examples[/]\n
educe embed ./all-MiniLM-L6-v2 "A man eats." "Someone has dinner." "It rains." --similar\n
educe embed ./all-MiniLM-L6-v2 sentences.txt --save vectors.npy\n
educe embed ./all-MiniLM-L6-v2 - --json < sentences.txt
"""

_LINES_AT_ONCE = 256
_MOST_COMPARED = 30


def command(
    model: options.ModelArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT|FILE", help="Texts, files of lines, or - for standard input.")
    ],
    *,
    similar: Annotated[
        bool, typer.Option("--similar", help="Show how alike the texts are: the cosines of their vectors.")
    ] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long; else they are errors.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            parser=options.named_path,
            metavar="FILE.npy",
            help="Write the vectors into this file instead, a row for each text.",
        ),
    ] = None,
    loading: EmbeddingOptions,
    json: options.JsonOption = False,
) -> None:
    """Make vectors of each TEXT, and of each line of each FILE, with MODEL."""
    embedder = open_embedder(model, loading)
    report = _Report(embedder, is_kept=similar or save is not None, json=json)
    for argument in texts:
        try:
            for line, found in _results(embedder, argument, truncate, is_shown=report.is_shown):
                report.add(argument, line, found)
        except EduceError as error:
            report.fail(argument, error)
    if similar:
        report.compare()
    if save is not None:
        _save(save, report.vectors())
    if report.status:
        raise typer.Exit(report.status)


def _results(
    embedder: Embedder, argument: str, truncate: bool, *, is_shown: bool
) -> Iterator[tuple[Line, np.ndarray | InputError]]:
    """Yield the lines of an argument with their vectors, or what is wrong with them.

    Args:
        is_shown: Whether vectors are printed on a terminal as they come, which a bar would disturb.
    """
    lines, done = text_lines(argument), 0
    with progress_bar(not is_shown) as progress:
        bar = progress.add_task("embedding", total=num_lines(argument), rate=0.0)

        def show(num_texts: int, total: int) -> None:
            progress.update(bar, completed=done + num_texts, rate=progress.tasks[bar].speed or 0.0)

        while group := list(islice(lines, _LINES_AT_ONCE)):
            tokens = [_tokens(embedder, line.text, truncate) for line in group]
            known = [ids for ids in tokens if isinstance(ids, list)]
            vectors = iter(embedder.embed_tokens(known, progress=show))
            for line, ids in zip(group, tokens, strict=True):
                yield line, next(vectors) if isinstance(ids, list) else ids
            done += len(group)


def _tokens(embedder: Embedder, text: str, truncate: bool) -> list[int] | InputError:
    try:
        return embedder.tokens(text, truncate=truncate)
    except InputError as error:
        return error


class _Report:
    """Prints vectors as they come, or keeps them for what is made of all.

    Attributes:
        is_shown: Whether vectors are printed on a terminal.
        status: The exit status.
    """

    def __init__(self, embedder: Embedder, *, is_kept: bool, json: bool) -> None:
        self._model, self._dimensions = model_fields(embedder), embedder.dimensions
        self._is_kept, self._json = is_kept, json
        self.is_shown = sys.stdout.isatty() and not is_kept
        self._places: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._vectors: list[np.ndarray] = []
        self.status = 0

    def add(self, name: str, line: Line, found: np.ndarray | InputError) -> None:
        """Take what became of one text."""
        if isinstance(found, InputError):
            self.fail(name, found, line.row)
            return
        place = given(input=name, row=line.row)
        if self._is_kept:
            self._places.append(place)
            self._texts.append(line.text)
            self._vectors.append(found)
        elif self._json:
            print_json({**place, "vector": found.tolist(), "model": self._model})
        else:
            write_text(" ".join(f"{element:.6g}" for element in found) + "\n")

    def fail(self, name: str, error: EduceError, row: int | None = None) -> None:
        """Say what is wrong with a text, or with an argument."""
        self.status = max(self.status, error.exit_status)
        print_failure(name if self._json else shortened(name), error, json=self._json, row=row)

    def vectors(self) -> np.ndarray:
        """Return the vectors that are kept, f32[texts, dimensions], one for each text that has one."""
        return np.array(self._vectors, np.float32).reshape(-1, self._dimensions)

    def compare(self) -> None:
        """Print how alike the texts are that are kept."""
        cosines = _cosines(self.vectors())
        if self._json:
            for place, row in zip(self._places, cosines, strict=True):
                print_json({**place, "similarities": row.tolist(), "model": self._model})
        else:
            print_table(_table(self._texts, cosines))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Return the cosine of each two vectors, f32[texts, texts]; of one without a length they are 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    cosines: np.ndarray = directions @ directions.T
    return cosines


def _table(texts: Sequence[str], cosines: np.ndarray) -> Table:
    if len(texts) > _MOST_COMPARED:
        raise OptionError(
            f"a table of {len(texts):,} texts is too wide",
            place="--similar",
            remedy=f"give at most {_MOST_COMPARED}, or add --json",
        )
    table = Table("", "text")
    for number in range(len(texts)):
        table.add_column(str(number + 1), justify="right", no_wrap=True)
    for number, (text, row) in enumerate(zip(texts, cosines, strict=True), 1):
        table.add_row(str(number), Text(shortened(text)), *(f"{cosine:.2f}" for cosine in row))
    return table


def _save(path: Path, vectors: np.ndarray) -> None:
    """Write vectors as NumPy's file of one array."""
    try:
        with path.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as fault:
        raise OptionError(
            f"cannot be written: {fault.strerror or fault}", path=path, remedy="name another file"
        ) from None
