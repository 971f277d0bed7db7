"""The memory plan: buffers that live at the same time never meet."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from educe.compiler.memory import ALIGNMENT, Life, guard_pages, plan
from educe.compiler.tensor import Buffer
from tests.conftest import ROOT

lives = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40
).map(lambda rows: [Life(Buffer(size), min(a, b), max(a, b)) for size, a, b in rows])


@given(lives)
def test_buffers_of_one_time_do_not_meet(found):
    total = plan(found)
    peak = max(
        sum(life.buffer.size_bytes for life in found if life.first <= time <= life.last) for time in range(31)
    )
    assert total >= peak
    for index, a in enumerate(found):
        assert a.buffer.offset % ALIGNMENT == 0
        assert 0 <= a.buffer.offset <= total - a.buffer.size_bytes
        for b in found[:index]:
            if a.first <= b.last and b.first <= a.last:
                apart = (
                    a.buffer.offset + a.buffer.size_bytes <= b.buffer.offset
                    or b.buffer.offset + b.buffer.size_bytes <= a.buffer.offset
                )
                assert apart or not a.buffer.size_bytes or not b.buffer.size_bytes


@given(lives)
def test_a_guarded_plan_ends_every_buffer_at_a_page_of_its_own(found):
    total = plan(found, guarded=True)
    guards = guard_pages([life.buffer for life in found])
    assert len(set(guards)) == len(found) + 1
    for life in found:
        assert life.buffer.offset + life.buffer.size_bytes in guards
        assert life.buffer.offset + life.buffer.size_bytes <= total


GUARDED = """
import numpy as np
from onnx import helper
from tests.compiler.models import FLOAT, model, native
nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Add", ["e", "e"], ["y"])]
executable = native(model(nodes, {"x": (FLOAT, ["n", 257])}, ["y"]))
x = np.ones((33, 257), np.float32)
executable.run({"x": x})
if BREAK:
    (segment,) = executable.program({"x": x})
    assert segment.launches[0].outputs[0].buffer.slot == "arena"
    length = 6 + 2 * len(segment.launches[0].tensors) + 1
    segment.table[length] *= 2
    executable.run({"x": x})
print("survived")
"""


def run_guarded(broken: bool) -> subprocess.CompletedProcess[str]:
    code = f"BREAK = {broken}\n{GUARDED}"
    env = {**os.environ, "EDUCE_GUARD": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, env=env
    )


def test_guard_pages_end_a_process_that_writes_beside_a_buffer():
    sound = run_guarded(False)
    assert sound.returncode == 0, sound.stderr
    assert run_guarded(True).returncode < 0
