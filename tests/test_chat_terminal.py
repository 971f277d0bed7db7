"""``educe chat`` on a terminal: line editing, history, an interrupt, and the end of the input."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stories import write_chat_model

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of our own")

PATIENCE_SECONDS = 100
# A keyboard's interrupt comes from the terminal that controls the session, and who started us may ignore it.
START = (
    "import fcntl, runpy, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('educe', run_name='__main__')"
)


class Screen:
    """A program on a terminal, what it shows, and a keyboard."""

    def __init__(self, *arguments: str, environment: dict[str, str]) -> None:
        self._terminal, own = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            stdin=own,
            stdout=own,
            stderr=own,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", **environment},
        )
        os.close(own)
        self._shown = ""

    def until(self, text: str) -> str:
        """Wait until a text is shown, and return what stood before it."""
        while text not in self._shown:
            assert select.select([self._terminal], [], [], PATIENCE_SECONDS)[0], self._shown
            self._shown += os.read(self._terminal, 65536).decode(errors="replace")
        before, _, self._shown = self._shown.partition(text)
        return before

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._terminal, keys.encode())

    def interrupt(self, answer: str) -> None:
        """Press Ctrl-C until the answer is shown: Python may miss one just before it waits for a key."""
        end = time.monotonic() + PATIENCE_SECONDS
        while answer not in self._shown:
            assert time.monotonic() < end, self._shown
            self.type("\x03")
            if select.select([self._terminal], [], [], 1)[0]:
                self._shown += os.read(self._terminal, 65536).decode(errors="replace")
        self.until(answer)

    def close(self) -> None:
        """End the program, and take the terminal away."""
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    model = write_chat_model(tmp_path / "talker")
    opened = Screen(
        "chat", str(model), "--max-tokens", "40", environment={"XDG_STATE_HOME": str(tmp_path / "state")}
    )
    yield opened
    opened.close()


def test_a_conversation(screen: Screen, tmp_path: Path) -> None:
    screen.until("> ")
    screen.type("Once upon a time\n")
    screen.until("first after")
    screen.until("> ")
    screen.type("abc")
    screen.until("abc")
    screen.interrupt("(Ctrl-D or /exit leaves)")
    screen.until("> ")
    screen.type("\x1b[A\n")
    assert "Once upon a time" in screen.until("first after")
    screen.until("> ")
    screen.type("\x04")
    assert screen.process.wait(PATIENCE_SECONDS) == 0
    history = tmp_path / "state" / "educe" / "chat_history"
    assert history.read_text().splitlines()[0] == "Once upon a time"
    assert history.stat().st_mode & 0o077 == 0
