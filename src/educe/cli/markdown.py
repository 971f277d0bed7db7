"""Answers on screen while they are written: as Markdown on a terminal, as they are elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from educe.cli.completions import write_text
from educe.cli.screen import output

_REFRESH_SECONDS = 0.08
# What a model writes in angle brackets is shown as it is.
_PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable(["html_block", "html_inline"])


class View(AbstractContextManager["View"], Protocol):
    """Shows one text that grows."""

    def add(self, text: str) -> None:
        """Show the next part."""


class PlainView(View):
    """Writes a text as it is, and ends its last line."""

    def __init__(self) -> None:
        self._last = "\n"

    def add(self, text: str) -> None:
        """Write the next part."""
        write_text(text)
        self._last = text[-1:] or self._last

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last != "\n":
            write_text("\n")


class MarkdownView(View):
    """Shows Markdown on a terminal.

    A block that is complete is printed once and for all; only the last one is drawn again while it grows, and
    of a tall one the end, so that nothing that has scrolled away is touched.
    """

    def __init__(self) -> None:
        self._console = output()
        self._tail = ""
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, vertical_overflow="visible"
        )
        self._drawn = 0.0
        self._is_first = True

    def __enter__(self) -> MarkdownView:
        self._live.start()
        return self

    def add(self, text: str) -> None:
        """Take the next part, and draw what has changed if the last time is long enough ago."""
        self._tail += text.replace("\r", "")
        if time.perf_counter() - self._drawn >= _REFRESH_SECONDS:
            self._settle()
            self._live.update(_Block(self._tail, max(1, self._console.height - 2)), refresh=True)
            self._drawn = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update("")
        self._live.stop()
        self._print(self._tail)

    def _settle(self) -> None:
        """Print the blocks that nothing can change any more: all but the last."""
        starts = [token.map[0] for token in _PARSER.parse(self._tail) if token.map and token.level == 0]
        if starts and starts[-1] > 0:
            lines = self._tail.split("\n")
            self._print("\n".join(lines[: starts[-1]]))
            self._tail = "\n".join(lines[starts[-1] :])

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if not self._is_first:
            self._console.print()
        self._console.print(_Block(text))
        self._is_first = False


class _Block:
    """Markdown without blank lines around it; of a tall one the last lines, if they are bounded."""

    def __init__(self, text: str, most_lines: int | None = None) -> None:
        self._text, self._most = text, most_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A link shows where it leads.
        content = Markdown("", hyperlinks=False)
        content.parsed = _PARSER.parse(self._text)
        lines = console.render_lines(content, options, pad=False)
        shown = [number for number, line in enumerate(lines) if not _is_blank(line)]
        if not shown:
            return
        lines = lines[shown[0] : shown[-1] + 1]
        for line in lines[-self._most :] if self._most else lines:
            yield from line
            yield Segment.line()


def _is_blank(line: list[Segment]) -> bool:
    return all(not each.text.strip() and (each.style is None or each.style.bgcolor is None) for each in line)
