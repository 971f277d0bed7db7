"""Reading what a user says: from a terminal with line editing and history, or line by line from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_PROMPT, _MORE = "> ", "… "
_FENCE = '"""'
_MOST_REMEMBERED = 1000


def messages(*, is_terminal: bool) -> Iterator[str]:
    """Yield what the user says, message by message, until the end of the input.

    A message is a line; a backslash at its end adds the next one, and three quotation marks begin one that
    ends at the next three.
    """
    if not is_terminal:
        yield from _joined(_piped)
        return
    history = _open_history()
    try:
        yield from _joined(_typed)
    finally:
        if history is not None:
            _save_history(history)


def _joined(read: Callable[[str], str | None]) -> Iterator[str]:
    while (line := read(_PROMPT)) is not None:
        if line.lstrip().startswith(_FENCE):
            message = _fenced(line.lstrip().removeprefix(_FENCE), read)
        else:
            message = _continued(line, read)
        if message.strip():
            yield message


def _fenced(line: str, read: Callable[[str], str | None]) -> str:
    lines = [line]
    while _FENCE not in lines[-1] and (more := read(_MORE)) is not None:
        lines.append(more)
    return "\n".join(lines).partition(_FENCE)[0].strip("\n")


def _continued(line: str, read: Callable[[str], str | None]) -> str:
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        more = read(_MORE)
        if more is None:
            break
        lines.append(more)
    return "\n".join(lines)


def _piped(prompt: str) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _typed(prompt: str) -> str | None:
    """Return a line, or None at the end of the input; an interrupt drops what was typed."""
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)")
            prompt = _PROMPT


def history_path() -> Path | None:
    """Return the file of what was said before; None if the user has no home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "educe" / "chat_history"
    try:
        return Path.home() / ".local" / "state" / "educe" / "chat_history"
    except RuntimeError:
        return None


def _open_history() -> Path | None:
    """Switch line editing on where there is some, with what was said before, and return its file."""
    try:
        import readline
    except ImportError:
        return None
    path = history_path()
    readline.set_history_length(_MOST_REMEMBERED)
    if path is not None:
        with suppress(OSError):
            readline.read_history_file(path)
    return path


def _save_history(path: Path) -> None:
    """Write the history where nobody else reads it; a disk that takes nothing costs the history alone."""
    import readline

    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.write_history_file(path)
