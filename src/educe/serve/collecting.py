"""When a process that serves looks for garbage that refers to itself."""

from __future__ import annotations

import gc
import time
from threading import Event, Thread

_SECONDS = 1.0
_REST_SHARE = 0.05
_MOST_SECONDS = 300.0
# So often has Python looked at the middle generation since it last looked at all objects.
_FEW, _MANY = 10, 100
_NEVER = 10**9
_HAS_DROPPED = Event()


def collect_at_rest() -> None:
    """Look for garbage among old objects only when the process rests, in this process from now on.

    Python does when there are a quarter more of them, which takes 0.2 s for those of 5,000 connections, in
    which nothing is answered. Here it is done when the process has hardly computed for a second, or a model
    was dropped; at the latest after five minutes, or when very many objects have grown old. Those that
    there are now, of which models are made, are looked at when a model was dropped. Young objects are
    looked at as ever.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    Thread(target=_collect, name="educe-garbage", daemon=True).start()


def note_dropped() -> None:
    """Know that a model is used no more: its parts refer to each other, and hold its weights until then."""
    _HAS_DROPPED.set()


def _collect() -> None:
    last = time.monotonic()
    while True:
        has_dropped, before = _HAS_DROPPED.is_set(), time.process_time()
        _HAS_DROPPED.clear()
        time.sleep(_SECONDS)  # in which who dropped a model lets go of it
        is_at_rest = time.process_time() - before < _REST_SHARE * _SECONDS
        least = _FEW if is_at_rest or time.monotonic() - last > _MOST_SECONDS else _MANY
        if has_dropped:
            gc.unfreeze()
        if has_dropped or gc.get_count()[2] >= least:
            gc.collect()
            last = time.monotonic()
        if has_dropped:
            gc.freeze()
