"""``--save``: annotated pictures and video, tensors, and texts, written to a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from educe.errors import OptionError
from educe.limits import DEFAULT_LIMITS
from educe.media.tensors import write_tensors
from educe.media.video import VideoWriter, video_facts
from educe.tasks.answer import Answer
from educe.tasks.base import Item
from educe.tasks.draw import annotate

_JPEG_QUALITY = 92


class OutputFolder:
    """A folder for what belongs to inputs, which is made.

    Args:
        folder: Where to write; files of the same name are replaced.
        sources: The inputs, whose own files are never written to.

    Raises:
        OptionError: the folder cannot be made.
    """

    def __init__(self, folder: Path, sources: Iterable[Path]) -> None:
        self._folder = folder
        self._used = {source.resolve() for source in sources}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise OptionError(
                f"cannot be made: {fault.strerror}", path=folder, remedy="name another folder"
            ) from None

    def path(self, source: str, suffix: str, row: int | None = None) -> Path:
        """Return a file name after an input's, with a number behind it if it is an input's, or taken."""
        stem = "input" if source.startswith(("-", "<")) else Path(source).stem
        name = stem if row is None else f"{stem}-{row}"
        path, count = self._folder / f"{name}{suffix}", 1
        while path.resolve() in self._used:
            count += 1
            path = self._folder / f"{name}-{count}{suffix}"
        self._used.add(path.resolve())
        return path

    def write_text(self, source: str, suffix: str, text: str) -> None:
        """Write a text into a file named after its input.

        Raises:
            OptionError: the folder cannot be written, or is full.
        """
        with self.writing():
            self.path(source, suffix).write_text(text, encoding="utf-8")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make faults of the disk errors of the option that named the folder."""
        try:
            yield
        except OSError as fault:
            raise OptionError(
                f"cannot be written: {fault.strerror or fault}",
                path=self._folder,
                remedy="name another folder",
            ) from None


class Saver:
    """Writes what belongs to each answer into one folder, which is made; a context manager.

    Args:
        folder: Where to write; files of the same name are replaced.
        sources: The inputs, whose own files are never written to.

    Raises:
        OptionError: the folder cannot be made.
    """

    def __init__(self, folder: Path, sources: Sequence[Any]) -> None:
        self._folder = OutputFolder(folder, (source for source in sources if isinstance(source, Path)))
        self._video: VideoWriter | None = None
        self._video_input: str | None = None
        self._video_path: Path | None = None

    def save(self, item: Item[Any], answer: Answer) -> Path | None:
        """Write what belongs to `answer`, and return the file, or None if nothing does.

        Raises:
            OptionError: the folder cannot be written, or is full.
        """
        with self._folder.writing():
            return self._write(item, answer)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_video()

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None

    def _write(self, item: Item[Any], answer: Answer) -> Path | None:
        if answer.outputs is not None:
            path = self._path(answer, ".npz")
            write_tensors(path, answer.outputs)
            return path
        if not isinstance(item.content, Image.Image):
            return None
        picture = annotate(item.content, answer.top(10**9))
        if answer.frame is not None:
            return self._write_frame(picture, answer)
        path = self._path(answer, ".jpg")
        picture.save(path, quality=_JPEG_QUALITY)
        return path

    def _write_frame(self, picture: Image.Image, answer: Answer) -> Path | None:
        if answer.input != self._video_input:
            self._finish_video()
            self._video_input = answer.input
            self._video_path = self._path(answer, ".mp4")
            facts = video_facts(answer.input, DEFAULT_LIMITS)
            self._video = VideoWriter(self._video_path, facts.frames_per_second)
        assert self._video is not None
        self._video.write(picture)
        return self._video_path

    def _path(self, answer: Answer, suffix: str) -> Path:
        return self._folder.path(answer.input, suffix, answer.row)
