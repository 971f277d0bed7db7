"""Progress of a long run: a bar with a rate on a terminal, and a line for each video."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from educe.cli.screen import errors
from educe.errors import EduceError
from educe.limits import DEFAULT_LIMITS
from educe.media.frames import is_video
from educe.media.video import video_facts
from educe.tasks.answer import StageSeconds
from educe.tasks.predictor import Result


def progress_bar(wanted: bool) -> Progress:
    """Return a bar on standard error, which only a terminal gets, and only if it is `wanted`.

    Its tasks have a field ``rate``: how many are done in a second.
    """
    console = errors()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.1f}/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    )


class Tracker:
    """Shows how far a run has come; a context manager.

    Args:
        sources: All inputs.
        takes_video: Whether the task takes videos.
        quiet: Print nothing but the bar, which only a terminal gets.
    """

    def __init__(self, sources: Sequence[Any], *, takes_video: bool, quiet: bool) -> None:
        self._quiet = quiet
        videos = [source for source in sources if takes_video and _is_video(source)]
        self._videos = {str(source): _num_frames(source) for source in videos}
        self._current: _Video | None = None
        self._progress = progress_bar(self._is_wanted(len(sources)))
        self._console = self._progress.console
        total = None if None in self._videos.values() else self._total(sources)
        self._bar = self._progress.add_task("predicting", total=total, rate=0.0)
        self._start = time.perf_counter()
        self._done = 0

    def _is_wanted(self, num_sources: int) -> bool:
        """Say whether there is enough to do, and nothing else that would be printed into the bar."""
        answers_on_screen = sys.stdout.isatty() and (self._quiet or not self._videos)
        return not answers_on_screen and (num_sources > 1 or bool(self._videos))

    def advance(self, result: Result) -> None:
        """Count one result."""
        self._done += 1
        rate = self._done / max(1e-9, time.perf_counter() - self._start)
        self._progress.update(self._bar, advance=1, rate=rate)
        if result.answer is not None and result.answer.frame is not None:
            if self._current is None or self._current.name != result.input:
                self._finish_video()
                self._current = _Video(result.input, result.answer.seconds)
            self._current.count(result)

    def __enter__(self) -> Tracker:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._finish_video()

    def _finish_video(self) -> None:
        if self._current is not None and not self._quiet:
            self._console.print(self._current.summary(), markup=False)
        self._current = None

    def _total(self, sources: Sequence[Any]) -> int:
        return len(sources) - len(self._videos) + sum(frames or 0 for frames in self._videos.values())


class _Video:
    """What was seen in one video so far."""

    def __init__(self, name: str, first: StageSeconds) -> None:
        self.name = name
        self._frames = 0
        self._labels: Counter[str] = Counter()
        self._start = time.perf_counter() - (first.preprocess + first.run + first.postprocess)

    def count(self, result: Result) -> None:
        assert result.answer is not None
        self._frames += 1
        self._labels.update(prediction.label or "" for prediction in result.answer.top(10**9))

    def summary(self) -> str:
        seconds = max(1e-9, time.perf_counter() - self._start)
        seen = ", ".join(
            f"{label} {count / self._frames:.1f} a frame" for label, count in self._labels.most_common(5)
        )
        rate = f"{self._frames / seconds:.1f} frames/s"
        return f"{self.name}: {self._frames} frames, {rate}; {seen or 'nothing found'}"


def _is_video(source: Any) -> bool:
    try:
        return isinstance(source, Path) and is_video(source)
    except EduceError:
        return False


def _num_frames(source: Path) -> int | None:
    try:
        return video_facts(source, DEFAULT_LIMITS).num_frames
    except EduceError:
        return None
