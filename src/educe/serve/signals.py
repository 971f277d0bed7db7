"""What a process does at signals while it serves, and did before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)
_CHANGED = (*ENDING, *([signal.SIGPIPE] if hasattr(signal, "SIGPIPE") else []))


@contextmanager
def signals_kept() -> Iterator[None]:
    """Give the process back, at the block's end, what it did before at the signals that a server takes.

    An event loop that ends does not: uvloop's leaves SIGINT to itself, where it is lost. Nothing is done
    outside the main thread, where no signal can be taken.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _CHANGED}
    try:
        yield
    finally:
        for number, does in before.items():
            if does is not None:  # what was not set from Python cannot be set again
                signal.signal(number, does)


def on_ending(does: Callable[[], object]) -> None:
    """Call `does` when the process is told to end, outside an event loop; in the main thread alone."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, lambda *_: does())
