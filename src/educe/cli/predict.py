"""``educe predict``: answers about inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from educe import api
from educe.cli import options
from educe.cli.inputs import expand_inputs
from educe.cli.saving import Saver
from educe.cli.screen import (
    errors,
    format_seconds,
    output,
    print_failure,
    print_json,
    print_warning,
    working,
)
from educe.cli.tracking import Tracker
from educe.errors import EduceError
from educe.limits import DEFAULT_LIMITS
from educe.tasks.answer import Answer, Prediction
from educe.tasks.predictor import Named, Predictor, Result

EXAMPLES = """
[bold]Examples[/]\n
educe predict zoo/mobilenet_v2/model.onnx zoo/images/zebra.jpeg\n
educe predict zoo/yolox_nano/model.onnx zoo/video/traffic_frames.mp4 --save out\n
educe predict zoo/breast_cancer/model.onnx zoo/breast_cancer/inputs/patients.csv --json\n
cat README.md | educe predict zoo/magika/model.onnx -
"""

_NOTICED_SECONDS = 0.1


def command(
    model: options.ModelArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Files, folders, patterns, or - for standard input."),
    ],
    task: options.TaskOption = None,
    card: options.CardOption = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Most predictions in an answer.")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="Lowest score of a prediction.")
    ] = None,
    engine: options.EngineOption = None,
    threads: options.ThreadsOption = None,
    batch: options.BatchOption = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            parser=options.named_path,
            metavar="DIR",
            help="Write annotated pictures and video, or tensors, there.",
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Answer about INPUT with MODEL: classes, boxes, segments, values or tensors."""
    with working(f"reading {model}"):
        loaded = api.load(model, card=card)
    with working(f"compiling {loaded.name}"):
        predictor = api.predictor(
            loaded, task=task, engine=engine, batch=batch, top=top, threshold=threshold, threads=threads
        )
    if loaded.card_origin.guessed:
        print_warning(
            f"the preprocessing is a guess from the model's signature (task {predictor.task.name}); "
            "check it with educe inspect, and write a card: docs/cards.md"
        )
    sources, failures = expand_inputs(inputs, predictor.task, DEFAULT_LIMITS)
    with Saver(save, sources) if save else nullcontext() as saver:
        status = _Report(predictor, saver, json).run(sources, failures)
    if status:
        raise typer.Exit(status)


class _Report:
    """Runs the inputs and prints what becomes of each."""

    def __init__(self, predictor: Predictor, saver: Saver | None, json: bool) -> None:
        self._predictor = predictor
        self._saver = saver
        self._json = json
        self._num_answers = 0
        self._num_failures = 0
        self._compile_seconds = 0.0
        self._is_single = False
        self._exit_status = 0

    def run(self, sources: Sequence[Path | Named], failures: Sequence[EduceError]) -> int:
        """Return the exit status: 0, or that of the gravest failure.

        Args:
            sources: What to answer about.
            failures: What kept arguments from being sources.
        """
        self._is_single = len(sources) + len(failures) == 1
        for error in failures:
            self._fail(error.path or "", error)
        start = time.perf_counter()
        takes_video = self._predictor.task.takes_video
        results = self._predictor.results(sources)
        with working(f"compiling {self._predictor.task.model.name}"):
            first = list(islice(results, 1))
        with Tracker(sources, takes_video=takes_video, quiet=self._json) as tracker:
            for result in chain(first, results):
                self._take(result)
                tracker.advance(result)
        self._summarise(time.perf_counter() - start - self._compile_seconds)
        return self._exit_status

    def _take(self, result: Result) -> None:
        if result.error is not None:
            self._fail(result.input, result.error)
            return
        assert result.answer is not None
        assert result.item is not None
        self._num_answers += 1
        self._compile_seconds += result.answer.seconds.compile
        saved = self._saver.save(result.item, result.answer) if self._saver else None
        if self._json:
            print_json(result.answer.to_dict(saved))
        elif result.answer.frame is None:
            _print_answer(result.answer, saved, self._is_single)

    def _fail(self, name: str, error: EduceError) -> None:
        self._num_failures += 1
        self._exit_status = max(self._exit_status, error.exit_status)
        print_failure(name, error, json=self._json)

    def _summarise(self, seconds: float) -> None:
        if self._json or self._num_answers + self._num_failures == 1:
            return
        rate = self._num_answers / seconds if seconds else 0.0
        failed = f", [bold red]{self._num_failures} failed[/]" if self._num_failures else ""
        errors().print(
            f"[dim]{self._num_answers} answered[/]{failed}[dim] in {format_seconds(seconds)}, {rate:.1f}/s, "
            f"by {self._predictor.executable.engine}{_compiling(self._compile_seconds)}[/]"
        )


def _print_answer(answer: Answer, saved: Path | None, is_single: bool) -> None:
    console = output()
    predictions = answer.top(10**9)
    if answer.row is not None:
        found = "   ".join(_prediction_line(prediction) for prediction in predictions)
        console.print(f"{escape(answer.input)} row {answer.row:<6} {found}")
        return
    times = answer.seconds
    total = times.preprocess + times.run + times.postprocess
    compiling = _compiling(times.compile) if is_single else ""
    console.print(f"[bold]{escape(answer.input)}[/] [dim]{format_seconds(total)}{compiling}[/]")
    for name, array in (answer.outputs or {}).items():
        where = f" -> {saved}" if saved else ""
        console.print(f"  {name} {array.dtype}{list(array.shape)}{where}", markup=False)
    for prediction in predictions:
        console.print("  " + _prediction_line(prediction))
    if not predictions and answer.outputs is None:
        console.print("  [dim]nothing found[/]")


def _compiling(seconds: float) -> str:
    """Return words about the time of compiling, if it was long enough to be noticed."""
    return f", after compiling for {format_seconds(seconds)}" if seconds >= _NOTICED_SECONDS else ""


def _score(score: float) -> str:
    """Return a probability as a percentage; what is no probability, such as a logit, as it is."""
    return f"{score:6.1%}" if -1e-3 <= score <= 1 + 1e-3 else f"{score:6.4g}"


def _prediction_line(prediction: Prediction) -> str:
    words: list[str] = []
    if prediction.score is not None:
        words.append(_score(prediction.score))
    if prediction.value is not None:
        words.append(f"{prediction.value:12.6g}")
    if prediction.start_seconds is not None and prediction.end_seconds is not None:
        words.append(f"{prediction.start_seconds:8.2f} s to {prediction.end_seconds:.2f} s")
    words.append(escape(prediction.label or ""))
    if prediction.box is not None:
        words.append("[dim]at {:.0f} {:.0f} {:.0f} {:.0f}[/]".format(*prediction.box))
    return "  ".join(words)
