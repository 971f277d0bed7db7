"""Programs of microseconds, which Python calls as builtin functions."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.engines.native import NativeExecutable
from educe.errors import EngineError, InputError
from tests.compiler.models import FLOAT, model, native

pytestmark = pytest.mark.usefixtures("unguarded")


def embedding() -> NativeExecutable:
    """A table of 7 rows, looked up and scaled, with the rows themselves as a second output."""
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("Mul", ["rows", "scale"], ["scaled"]),
    ]
    inputs = {"index": (TensorProto.INT64, ["n"]), "scale": (FLOAT, ["n", 1])}
    table = np.arange(21, dtype=np.float32).reshape(7, 3)
    return native(model(nodes, inputs, ["scaled", "rows"], {"table": table}), threads=1)


def feeds(*rows: int) -> dict[str, Any]:
    return {"index": np.array(rows, np.int64), "scale": np.full((len(rows), 1), 2.0, np.float32)}


def check(outputs: dict[str, Any] | None, given: dict[str, Any]) -> None:
    assert outputs is not None
    assert list(outputs) == ["scaled", "rows"]
    rows = np.arange(21, dtype=np.float32).reshape(7, 3)[given["index"]]
    np.testing.assert_array_equal(outputs["rows"], rows)
    np.testing.assert_array_equal(outputs["scaled"], rows * given["scale"])


@pytest.fixture
def executable(unguarded: None) -> NativeExecutable:
    made = embedding()
    check(made.run(feeds(1, 2)), feeds(1, 2))
    assert type(made.executor.answer) is type(len)
    return made


def test_every_call_gives_arrays_of_its_own(executable: NativeExecutable) -> None:
    answer = executable.executor.answer
    assert answer is not None
    first, second = answer(feeds(1, 2)), answer(feeds(6, 0))
    check(first, feeds(1, 2))
    check(second, feeds(6, 0))
    assert all(value.flags.owndata and value.flags.writeable for value in (first or {}).values())


@pytest.mark.parametrize(
    "given",
    [
        None,
        [1],
        {},
        {"index": feeds(1, 2)["index"]},
        {**feeds(1, 2), "more": 1},
        {**feeds(1, 2), "index": [1, 2]},
        {**feeds(1, 2), "index": np.array([1, 2], np.int32)},
        {**feeds(1, 2), "index": np.array([1, 2])[::-1]},
        {**feeds(1, 2), "index": np.array([[1, 2]])},
        {"index": feeds(1, 2)["index"], "factor": 1},
        feeds(1),
        feeds(1, 2, 3),
    ],
    ids=str,
)
def test_what_it_was_not_made_for_is_left_to_others(executable: NativeExecutable, given: Any) -> None:
    answer = executable.executor.answer
    assert answer is not None
    assert answer(given) is None
    check(answer(feeds(3, 4)), feeds(3, 4))


def test_the_same_errors_as_ever(executable: NativeExecutable) -> None:
    with pytest.raises(InputError, match="'scale' is missing"):
        executable.run({"index": np.array([1])})
    with pytest.raises(EngineError, match="an index is out of range"):
        executable.run(feeds(1, 7))
    with pytest.raises(EngineError, match="an index is out of range"):
        executable.run(feeds(-8, 1))
    check(executable.run(feeds(-1, 1)), feeds(-1, 1))


def test_sizes_may_alternate(executable: NativeExecutable) -> None:
    for given in (feeds(1), feeds(1, 2), feeds(1, 2), feeds(3, 4, 5), feeds(0)) * 3:
        check(executable.run(given), given)
    check(executable.run({**feeds(1, 2), "index": np.array([1, 9, 2])[::2]}), feeds(1, 2))


def test_references_are_neither_lost_nor_kept(executable: NativeExecutable) -> None:
    answer = executable.executor.answer
    assert answer is not None
    given, wrong, outside = feeds(1, 2), feeds(1, 2, 3), feeds(1, 7)
    shared = [*given.values(), None, np.dtype(np.float32), given["index"].dtype, np.empty, dict, "rows"]
    gc.collect()
    before = [sys.getrefcount(each) for each in shared]
    for _ in range(1000):
        check(answer(given), given)
        assert answer(wrong) is None
        assert answer(outside) is None
    found = answer(given)
    assert found is not None
    plain = {"rows": np.empty(1)}
    assert sys.getrefcount(found["rows"]) == sys.getrefcount(plain["rows"])
    del found
    gc.collect()
    assert max(abs(sys.getrefcount(each) - count) for each, count in zip(shared, before, strict=True)) < 50


def test_threads_may_call_it_side_by_side(executable: NativeExecutable) -> None:
    wrong: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(2000):
                given = feeds(first, number % 7)
                check(executable.run(given), given)
        except BaseException as fault:
            wrong.append(fault)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_shapes_that_take_turns_keep_their_functions(executable: NativeExecutable) -> None:
    made = set()
    for given in (feeds(1), feeds(1, 2), feeds(3, 4, 5)) * 20:
        check(executable.run(given), given)
        made.add(id(executable.executor.answer))
    assert len(made) == 3


def test_inputs_live_until_the_run_ends(executable: NativeExecutable) -> None:
    answer = executable.executor.answer
    assert answer is not None
    given: dict[str, Any] = {}

    def forget(phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            given.clear()

    gc.collect()
    threshold = gc.get_threshold()
    gc.set_threshold(7)
    gc.callbacks.append(forget)
    try:
        for number in range(3000):
            rows = number % 7, (number * 5 + 1) % 7
            given.update(feeds(*rows))
            found = answer(given)
            if found is not None:
                check(found, feeds(*rows))
    finally:
        gc.callbacks.remove(forget)
        gc.set_threshold(*threshold)


def test_it_outlives_what_made_it() -> None:
    made = embedding()
    check(made.run(feeds(1, 2)), feeds(1, 2))
    answer = made.executor.answer
    del made
    gc.collect()
    assert answer is not None
    check(answer(feeds(5, 6)), feeds(5, 6))


def test_longer_runs_are_not_builtin() -> None:
    made = native(model([helper.make_node("Exp", ["x"], ["y"])], {"x": (FLOAT, ["n"])}, ["y"]))
    made.run({"x": np.zeros(1_000_000, np.float32)})
    assert made.executor.answer is None
