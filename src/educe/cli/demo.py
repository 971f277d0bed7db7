"""``educe demo``: the zoo's models on the zoo's inputs, a translation, and a story."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from educe import api
from educe.cli import options
from educe.cli.completions import completion_fields, follow, print_summary, write_text
from educe.cli.inputs import expand_inputs
from educe.cli.loading import model_fields, open_generator, open_translator
from educe.cli.saving import Saver
from educe.cli.screen import errors, format_seconds, output, print_error, print_json, print_table, working
from educe.errors import EduceError, OptionError
from educe.limits import DEFAULT_LIMITS
from educe.tasks.answer import Answer, Prediction
from educe.tasks.predictor import Predictor

EXAMPLES = """
[bold]Example[/]\n
educe demo --save demo-out
"""
_MAX_SHOWN = 4
_WRITER, _BEGINNING = "stories260K", "Once upon a time"
_TRANSLATOR = "en_fr_char_lstm"
_SENTENCES = ("Where are you?", "Come in.", "Help me.")


@dataclass(frozen=True)
class _Scene:
    """One model of the zoo, and the inputs that it is shown, relative to the zoo."""

    model: str
    inputs: tuple[str, ...]


_SCENES = (
    _Scene("mobilenet_v2", ("images",)),
    _Scene("gtsrb", ("gtsrb/inputs",)),
    _Scene("mnist", ("mnist/inputs",)),
    _Scene("yolox_nano", ("detection/*.jpg", "video/traffic_frames.mp4")),
    _Scene("fastestdet", ("detection/*.jpg",)),
    _Scene("face_detection", ("face_detection/inputs",)),
    _Scene("kws", ("kws/inputs",)),
    _Scene("silero_vad", ("silero_vad/inputs",)),
    _Scene("magika", ("magika/inputs",)),
    _Scene("comment_spam", ("comment_spam/inputs/comments.txt",)),
    _Scene("breast_cancer", ("breast_cancer/inputs/patients.csv",)),
)


def command(
    zoo: Annotated[
        Path | None, typer.Option("--zoo", metavar="DIR", help="The zoo folder of Educe's repository.")
    ] = None,
    save: Annotated[
        Path, typer.Option("--save", metavar="DIR", help="Where annotated pictures and video go.")
    ] = Path("demo-out"),
    engine: options.EngineOption = None,
    json: options.JsonOption = False,
) -> None:
    """Run models of every task on real pictures, video, sounds, files, texts and tables; tell a story."""
    folder = zoo or _find_zoo()
    start = time.perf_counter()
    exit_status = 0
    for scene in _SCENES:
        for answer in _play(scene, folder, save, engine):
            if isinstance(answer, EduceError):
                exit_status = max(exit_status, answer.exit_status)
                print_error(answer)
            elif json:
                print_json(answer.to_dict())
    _translate(folder / _TRANSLATOR, json)
    _tell(folder / _WRITER, json)
    errors().print(
        f"[dim]{len(_SCENES) + 2} models in {format_seconds(time.perf_counter() - start)}; "
        f"pictures and video in[/] {save}/"
    )
    if exit_status:
        raise typer.Exit(exit_status)


def _find_zoo() -> Path:
    """Return the zoo in the current folder, or in the repository that Educe is installed from."""
    for folder in (Path("zoo"), Path(__file__).parents[3] / "zoo"):
        if (folder / "mnist" / "model.onnx").is_file():
            return folder
    raise OptionError(
        "the zoo, which comes with Educe's repository, is not here",
        path="zoo",
        remedy="run educe demo in a clone of the repository, or name its zoo with --zoo",
    )


def _play(scene: _Scene, zoo: Path, save: Path, engine: str | None) -> Iterator[Answer | EduceError]:
    model = api.load(zoo / scene.model / "model.onnx")
    predictor = api.predictor(model, engine=engine)
    sources, failures = expand_inputs(
        [str(zoo / name) for name in scene.inputs], predictor.task, DEFAULT_LIMITS
    )
    yield from failures
    table = _new_table(predictor)
    with Saver(save / scene.model, sources) as saver, working(f"running {model.name}"):
        for result in predictor.results(sources):
            if result.error is not None:
                yield result.error
            elif result.answer is not None and result.item is not None:
                saver.save(result.item, result.answer)
                _add_row(table, result.answer)
                yield result.answer
    print_table(table)


def _translate(model: Path, json: bool) -> None:
    """Show sentences beside their translations."""
    translator = open_translator(model)
    translations = translator.translate(_SENTENCES)
    table = Table(
        "input", "answer", title=f"{model.name}: translation", title_justify="left", title_style="bold"
    )
    for sentence, translation in zip(_SENTENCES, translations, strict=True):
        if json:
            print_json({"input": sentence, "text": translation, "model": model_fields(translator)})
        table.add_row(sentence, Text(translation))
    if not json:
        print_table(table)


def _tell(model: Path, json: bool) -> None:
    """Show a story while it is written."""
    with open_generator(model) as generator:
        stream = generator.stream(_BEGINNING)
        if json:
            completion = stream.result()
            print_json({"prompt": _BEGINNING, **completion_fields(generator, completion)})
            return
        output().print(f"[bold]{model.name}: a story[/]")
        write_text(_BEGINNING)
        completion = follow(stream, lambda piece: write_text(piece.text))
        write_text("\n")
        print_summary(completion)


def _new_table(predictor: Predictor) -> Table:
    card, engine = predictor.task.card, predictor.executable.engine
    title = f"{card.name or predictor.task.model.name}: {predictor.task.name} by {engine}"
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    table.add_column("input", no_wrap=True)
    table.add_column("answer", overflow="fold")
    table.add_column("run", justify="right", no_wrap=True)
    return table


def _add_row(table: Table, answer: Answer) -> None:
    """Add an answer; of a video or a table only a few, evenly spread."""
    if answer.frame is not None and answer.frame % 5:
        return
    if answer.row is not None and answer.row >= 2 * _MAX_SHOWN:
        return
    name = Path(answer.input).name
    if answer.frame is not None:
        name += f" frame {answer.frame}"
    if answer.row is not None:
        name += f" row {answer.row}"
    best = 1 if _is_single(answer) else _MAX_SHOWN
    found = ", ".join(_words(prediction) for prediction in answer.top(best))
    hidden = 0 if _is_single(answer) else len(answer.top(10**9)) - best
    more = f" and {hidden} more" if hidden > 0 else ""
    table.add_row(name, (found or "nothing") + more, format_seconds(answer.seconds.run))


def _is_single(answer: Answer) -> bool:
    return "classification" in answer.task or answer.task == "file-type"


def _words(prediction: Prediction) -> str:
    text: Any = prediction.label or ""
    if prediction.start_seconds is not None and prediction.end_seconds is not None:
        text += f" {prediction.start_seconds:.1f}-{prediction.end_seconds:.1f} s"
    if prediction.score is not None:
        text += f" {prediction.score:.0%}"
    return str(text)
