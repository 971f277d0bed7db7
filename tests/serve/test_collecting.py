"""When a process that serves looks for garbage that refers to itself."""

from __future__ import annotations

from tests.conftest import run_python

PREPARE = """
import gc, time, weakref
from educe.serve import collecting

class Node:
    pass

def old_cycle():
    node = Node()
    node.self = node
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(node)

def is_gone(found, seconds):
    end = time.monotonic() + seconds
    while found() is not None and time.monotonic() < end:
        time.sleep(0.05)
    return found() is None

collecting._SECONDS = 0.05
Node.first = Node()
Node.first.self = Node.first
frozen = weakref.ref(Node.first)
collecting.collect_at_rest()
"""


def test_old_garbage_is_looked_for_at_rest_and_not_at_work() -> None:
    found = run_python(
        PREPARE
        + """
collecting._REST_SHARE = -1.0  # never at rest
cycle = old_cycle()
kept = []
while gc.get_count()[2] < 50 and len(kept) < 10_000:  # Python alone looks after 10
    kept.append([[] for _ in range(1000)])
is_there = cycle() is not None
collecting._REST_SHARE = 2.0  # always
print(is_there, is_gone(cycle, 20))
"""
    )
    assert found.split() == ["True", "True"]


def test_what_a_dropped_model_leaves_is_looked_for_at_once() -> None:
    found = run_python(
        PREPARE
        + """
cycle = old_cycle()
del Node.first
before = is_gone(cycle, 1.0)
collecting.note_dropped()
print(before, is_gone(cycle, 20), is_gone(frozen, 20))
"""
    )
    assert found.split() == ["False", "True", "True"]
