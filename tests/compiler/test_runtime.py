"""The pool of threads, arenas, and runs side by side."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.compiler import runtime
from educe.compiler.executor import Arena
from educe.compiler.library import library
from educe.compiler.target import host_target
from educe.errors import EngineError
from educe.machine import usable_cores
from tests.compiler.models import FLOAT, model, native
from tests.conftest import ROOT


def chain():
    """A model whose work is large enough to be shared between threads."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Exp", ["t"], ["e"]),
        helper.make_node("Add", ["e", "t"], ["s"]),
        helper.make_node("Transpose", ["s"], ["u"], perm=[1, 0]),
        helper.make_node("Mul", ["u", "x"], ["y"]),
    ]
    return model(nodes, {"x": (FLOAT, ["n", 257])}, ["y"])


def expected(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return (np.exp(wide) + wide) * wide


def test_many_threads_share_one_executable():
    executable = native(chain())
    inputs = [np.random.default_rng(seed).standard_normal((300 + seed, 257), np.float32) for seed in range(6)]
    first = [executable.run({"x": x})["y"] for x in inputs]
    for x, y in zip(inputs, first, strict=True):
        np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-5)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(50):
            if not np.array_equal(executable.run({"x": inputs[seed]})["y"], first[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_run_beside_as_many_as_there_are_cores_keeps_to_its_own_thread():
    executable = native(chain(), threads=2)
    x = np.random.default_rng(0).standard_normal((1000, 257), np.float32)
    job = ctypes.c_int64.from_address(executable.executor.runtime.pool + 8 * runtime._JOB)
    right, shared = executable.run({"x": x})["y"], []
    others = max(2, usable_cores()) - 1
    for by in (others, -others):
        executable.crowd(by)
        job.value = 0
        assert np.array_equal(executable.run({"x": x})["y"], right)
        shared.append(job.value != 0)
    assert shared == [False, True]


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_bits_do_not_depend_on_the_number_of_threads(threads):
    x = np.random.default_rng(0).standard_normal((1000, 257), np.float32)
    made = chain()
    alone = native(made, threads=1).run({"x": x})["y"]
    assert np.array_equal(native(made, threads=threads).run({"x": x})["y"], alone)


@pytest.mark.usefixtures("unguarded")
def test_workers_of_others_stay_out_of_a_run_that_has_no_memory_for_them():
    node = helper.make_node("TopK", ["x", "k"], ["y", ""], axis=1)
    executable = native(model([node], {"x": (FLOAT, ["n", 5000])}, ["y"], {"k": np.array([4900])}), threads=2)
    x = np.random.default_rng(0).standard_normal((64, 5000), np.float32)
    right = executable.run({"x": x})["y"]
    ready = executable.executor._last
    assert ready is not None
    assert ready.segment.scratch_bytes
    native(chain(), threads=8)
    arena = Arena(ready.memory_bytes + 8 * ready.segment.scratch_bytes)
    arena.memory[:] = 165
    executable.executor._arenas._free[:] = [arena]
    for _ in range(20):
        assert np.array_equal(executable.run({"x": x})["y"], right)
    assert (arena.memory[ready.memory_bytes :] == 165).all()


def test_rows_do_not_depend_on_their_neighbours():
    executable = native(chain())
    x = np.random.default_rng(0).standard_normal((64, 257), np.float32)
    whole = executable.run({"x": x})["y"]
    for start, stop in ((0, 1), (3, 5), (17, 64)):
        assert np.array_equal(executable.run({"x": x[start:stop]})["y"], whole[start:stop])


@pytest.mark.usefixtures("unguarded")
def test_new_sizes_compile_nothing_and_memory_stays_that_of_the_largest():
    executable = native(chain())
    largest = np.ones((2000, 257), np.float32)
    executable.run({"x": largest})
    executable.run({"x": largest[:1]})
    made = len(library(host_target()))
    for rows in range(3, 200, 4):
        assert executable.run({"x": largest[:rows]})["y"].shape == (rows, 257)
    assert len(library(host_target())) == made
    free = executable.executor._arenas._free
    assert len(free) == 1
    assert free[0].size_bytes <= executable.program({"x": largest})[0].arena_bytes + 2**20


def test_an_idle_process_uses_no_processor_time():
    executable = native(chain())
    executable.run({"x": np.ones((2000, 257), np.float32)})
    time.sleep(0.1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.05


def test_a_signal_during_a_run_leaves_the_executable_usable():
    # In a process that nobody measures: an exception at any place may leave coverage's locks taken.
    code = """
import signal
import numpy as np
from tests.compiler.test_runtime import chain, native

class InterruptionError(Exception):
    pass

def interrupt(*_):
    raise InterruptionError

executable = native(chain())
x = np.random.default_rng(0).standard_normal((4000, 257), np.float32)
right = executable.run({"x": x})["y"]
signal.signal(signal.SIGALRM, interrupt)
for attempt in range(40):
    try:
        # Again and again: an exception that meets a destructor is ignored.
        signal.setitimer(signal.ITIMER_REAL, 0.0003 * (1 + attempt % 9), 0.5)
        while True:
            executable.run({"x": x})
    except InterruptionError:
        signal.setitimer(signal.ITIMER_REAL, 0)
assert np.array_equal(executable.run({"x": x})["y"], right)
"""
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT, env=unmeasured)


def test_a_forked_child_has_threads_of_its_own():
    code = """
import os, numpy as np
from tests.compiler.test_runtime import chain, native
x = np.ones((3000, 257), np.float32)
executable = native(chain(), threads=2)
y = executable.run({"x": x})["y"]
child = os.fork()
if child == 0:
    again = native(chain(), threads=2).run({"x": x})["y"]
    same = executable.run({"x": x})["y"]
    os._exit(0 if np.array_equal(again, y) and np.array_equal(same, y) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.usefixtures("unguarded")
def test_a_child_that_is_forked_while_others_compile_does_not_wait_for_them():
    made = chain()
    executable = native(made)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with library(host_target())._lock, executable.executor._lock:
            held.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(60)
        x = np.ones((7, 257), np.float32)
        os._exit(not np.allclose(executable.run({"x": x})["y"], expected(x), rtol=1e-5))
    go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_run_that_needs_more_memory_than_there_is_fails_and_the_next_one_does_not():
    nodes = [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("Neg", ["e"], ["y"])]
    made = model(nodes, {"x": (FLOAT, [1]), "s": (TensorProto.INT64, [2])}, ["y"])
    executable = native(made)
    small, large = np.array([3, 4]), np.array([2**21, 2**21])
    assert executable.run({"x": np.ones(1, np.float32), "s": small})["y"].sum() == -12
    with pytest.raises(EngineError, match="memory"):
        executable.run({"x": np.ones(1, np.float32), "s": large})
    assert executable.run({"x": np.ones(1, np.float32), "s": small})["y"].sum() == -12


def test_dimensions_that_cannot_be_joined_are_copied_in_slices():
    order = [int(axis) for axis in np.random.default_rng(1).permutation(16)]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=order),
        helper.make_node("Sub", ["x", "t"], ["y"]),
    ]
    x = np.random.default_rng(0).standard_normal((2,) * 16, np.float32)
    executable = native(model(nodes, {"x": (FLOAT, [2] * 16)}, ["y"]))
    assert np.array_equal(executable.run({"x": x})["y"], x - x.transpose(order))


def test_a_tensor_of_more_bytes_than_an_address_has_is_an_error():
    node = helper.make_node("Tile", ["x", "s"], ["y"])
    executable = native(model([node], {"x": (FLOAT, [1, 1]), "s": (TensorProto.INT64, [2])}, ["y"]))
    with pytest.raises(EngineError, match="memory"):
        executable.run({"x": np.ones((1, 1), np.float32), "s": np.array([2**61, 2**61])})
