"""``educe translate``: texts into another language."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from educe.cli import options
from educe.cli.completions import write_text
from educe.cli.inputs import Line, names_file, num_lines, text_lines
from educe.cli.loading import CachingOptions, model_fields, open_translator
from educe.cli.options import given
from educe.cli.saving import OutputFolder
from educe.cli.screen import print_failure, print_json, shortened
from educe.cli.tracking import progress_bar
from educe.errors import EduceError, UserError
from educe.generate.translation import Translator

EXAMPLES = """
[bold]Examples[/]\n
educe translate zoo/en_fr_char_lstm "Where are you?" "Come in."\n
educe translate ./nllb-200 letter.txt --from eng_Latn --to fra_Latn --save out\n
echo "محمد" | educe translate zoo/transliteration - --num-beams 4 --json
"""

_LINES_AT_ONCE = 32


def command(
    model: options.ModelArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT|FILE", help="Texts, files of lines, or - for standard input.")
    ],
    *,
    source: Annotated[
        str | None, typer.Option("--from", metavar="CODE", help="The language read, where it is asked for.")
    ] = None,
    target: Annotated[str | None, typer.Option("--to", metavar="CODE", help="The language written.")] = None,
    num_beams: options.NumBeamsOption = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(
            "--length-penalty", metavar="X", help="Above 0 long texts are favoured; the model's own."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Most tokens of a translation.")
    ] = None,
    save: options.SaveTextsOption = None,
    loading: CachingOptions,
    json: options.JsonOption = False,
) -> None:
    """Translate each TEXT, and each line of each FILE, with MODEL.

    A translation stands in the line of its source; a line that cannot be translated costs no other.
    """
    chosen = given(
        source=source,
        target=target,
        num_beams=num_beams,
        length_penalty=length_penalty,
        max_tokens=max_tokens,
    )
    folder = None if save is None else OutputFolder(save, map(Path, filter(names_file, texts)))
    translator = open_translator(model, loading)
    # A fault of the options is one of the command, not of each line.
    translator.translate([], **chosen)
    status = 0
    for argument in texts:
        report = _Report(translator, argument, json)
        try:
            for line, result in _results(translator, argument, chosen):
                report.add(line, result)
        except EduceError as error:
            report.fail(error)
        if folder is not None:
            folder.write_text(argument if names_file(argument) else "-", ".txt", report.text)
        status = max(status, report.status)
    if status:
        raise typer.Exit(status)


def _results(
    translator: Translator, argument: str, chosen: dict[str, Any]
) -> Iterator[tuple[Line, str | UserError]]:
    """Yield the lines of an argument with their translations, or what is wrong with them."""
    lines = text_lines(argument)
    with progress_bar(not sys.stdout.isatty()) as progress:
        bar = progress.add_task("translating", total=num_lines(argument), rate=0.0)
        while group := list(islice(lines, _LINES_AT_ONCE)):
            found = translator.batch([line.text for line in group], **chosen)
            yield from zip(group, found, strict=True)
            progress.update(bar, advance=len(group), rate=progress.tasks[bar].speed or 0.0)


class _Report:
    """Prints the translations of one argument, each in the line of its source.

    Attributes:
        text: All lines so far.
        status: The exit status.
    """

    def __init__(self, translator: Translator, name: str, json: bool) -> None:
        self._model, self._name, self._json = model_fields(translator), name, json
        self._num_lines = 0
        self.text = ""
        self.status = 0

    def add(self, line: Line, result: str | UserError) -> None:
        """Take what became of one line; where there is nothing, its line is empty."""
        if isinstance(result, UserError):
            result.place = None  # its line is said
            self.fail(result, line.row)
        translation = "" if isinstance(result, UserError) else " ".join(result.splitlines())
        row = line.row or 0
        written = "\n" * (row - self._num_lines) + translation + "\n"
        self._num_lines = row + 1
        self.text += written
        if not self._json:
            write_text(written)
        elif not isinstance(result, UserError):
            place = given(input=self._name, row=line.row)
            print_json({**place, "text": result, "model": self._model})

    def fail(self, error: EduceError, row: int | None = None) -> None:
        """Say what is wrong with a line, or with the argument."""
        self.status = max(self.status, error.exit_status)
        print_failure(self._name if self._json else shortened(self._name), error, json=self._json, row=row)
