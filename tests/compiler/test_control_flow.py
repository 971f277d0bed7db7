"""If, Loop, Scan, SequenceMap and functions, against ONNX Runtime or NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

from educe import engines, formats
from educe.compiler.code import Code
from educe.engines.native import NativeExecutable
from educe.errors import EngineError, InputError, UnsupportedModelError
from educe.model import Model

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'


def parsed(text: str, header: str = HEADER) -> Model:
    return formats.load(onnx.parser.parse_model(header + text).SerializeToString())


def compiled(model: Model) -> NativeExecutable:
    executable = engines.compile(model, "native", threads=1)
    assert isinstance(executable, NativeExecutable)
    return executable


def agree(model: Model, *runs: dict[str, Any]) -> NativeExecutable:
    """Compare with ONNX Runtime for each set of inputs, all with one executable."""
    executable, judge = compiled(model), engines.compile(model, "onnxruntime")
    for feeds in runs:
        found, expected = executable.run(feeds), judge.run(feeds)
        for name, value in expected.items():
            if isinstance(value, list):
                assert len(found[name]) == len(value)
            for one, other in zip(
                *((v if isinstance(v, list) else [v]) for v in (found[name], value)), strict=True
            ):
                assert one.dtype == other.dtype
                np.testing.assert_allclose(one, other, rtol=1e-6)
    return executable


BRANCHES = """
branches (bool c, bool d, float[N] x) => (float[N] y, float[N] z) {
  outer = Add(x, x)
  y, z = If (c) <
    then_branch = t () => (float[N] a, float[N] b) {
      k = Mul(outer, outer)
      a = If (d) <
        then_branch = tt () => (float[N] k2) { j = Sub(k, x)  k2 = Add(j, outer) },
        else_branch = te () => (float[N] k2) { k2 = Add(k, k) }
      >
      b = Identity(k)
    },
    else_branch = e () => (float[N] a, float[N] b) {
      k = Add(outer, x)
      a = Mul(k, k)
      b = Add(k, outer)
    }
  >
}
"""


def test_the_chosen_branch_runs_with_outer_values_and_those_of_the_branch_around_it(rng) -> None:
    x = rng.standard_normal(5).astype(np.float32)
    flags = [(a, b) for a in (True, False) for b in (True, False)]
    agree(parsed(BRANCHES), *({"c": np.array(c), "d": np.array(d), "x": x} for c, d in flags * 2))


def test_two_choices_with_branches_of_the_same_names(rng) -> None:
    text = """
    twice (bool c, float[N] x) => (float[N] z) {
      y = If (c) <then_branch = t () => (float[N] v) { k = Add(x, x)  v = Mul(k, x) },
                  else_branch = e () => (float[N] v) { v = Identity(x) }>
      n = Not(c)
      z = If (n) <then_branch = t () => (float[N] v) { k = Sub(y, x)  v = Mul(k, y) },
                  else_branch = e () => (float[N] v) { k = Add(y, x)  v = Add(k, k) }>
    }
    """
    x = rng.standard_normal(4).astype(np.float32)
    agree(parsed(text), {"c": np.array(True), "x": x}, {"c": np.array(False), "x": x})


def test_values_of_a_branch_and_of_the_graph_may_have_names_that_look_alike(rng) -> None:
    text = """
    alike (bool c, float[N] x) => (float[N] z) {
      w = Mul(x, x)
      y = If (c) <then_branch = t () => (float[N] v) { v = Add(x, x) },
                  else_branch = e () => (float[N] v) { v = Sub(x, w) }>
      z = Add(w, y)
    }
    """
    proto = onnx.parser.parse_model(HEADER + text)
    branch = proto.graph.node[1].attribute[1].g
    for names in (proto.graph.node[0].output, proto.graph.node[2].input, branch.node[0].input):
        names[:] = ["y/v" if name == "w" else name for name in names]
    x = rng.standard_normal(4).astype(np.float32)
    alike = formats.load(proto.SerializeToString())
    agree(alike, {"c": np.array(True), "x": x}, {"c": np.array(False), "x": x})


def test_a_condition_on_shapes_costs_no_step_of_the_host(rng) -> None:
    text = """
    shapes (float[N, M] x) => (float[N, M] y) {
      zero = Constant <value_int = 0> ()
      three = Constant <value_int = 3> ()
      s = Shape(x)
      n = Gather(s, zero)
      c = Equal(n, three)
      y = If (c) <then_branch = t () => (float[N, M] v) { v = Mul(x, x) },
                  else_branch = e () => (float[N, M] v) { v = Add(x, x) }>
    }
    """
    feeds = {"x": rng.standard_normal((3, 2)).astype(np.float32)}
    executable = agree(parsed(text), feeds, {"x": feeds["x"][:2]})
    (segment,) = executable.program(feeds)
    assert segment.step is None


LOOP = """
loop (int64 trips, bool go, float[N] x) => (float[N] last, float[K, N] rows, int64[K] counts)
<float[3] w = {0.5, 2.0, -1.0}> {
  last, rows, counts = Loop (trips, go, x) <
    body = b (int64 i, bool c, float[N] v) => (bool c2, float[N] v2, float[N] row, int64 count) {
      scaled = Mul(v, w)
      v2 = Add(scaled, x)
      limit = Constant <value = float {100.0}> ()
      largest = ReduceMax <keepdims = 0> (v2)
      c2 = Less(largest, limit)
      row = Sub(v2, v)
      count = Add(i, i)
    }
  >
}
"""


@pytest.mark.parametrize("trips", [0, 1, 7, 40])
@pytest.mark.parametrize("go", [True, False])
def test_a_loop_carries_values_and_stacks_what_iterations_give(rng, trips: int, go: bool) -> None:
    x = rng.standard_normal(3).astype(np.float32)
    agree(parsed(LOOP), {"trips": np.array(trips), "go": np.array(go), "x": x})


def test_a_body_is_lowered_once(rng, monkeypatch) -> None:
    text = """
    power (int64 trips, float[N, N] a) => (float[N, N] y) {
      y = Loop (trips, , a) <
        body = b (int64 i, bool c, float[N, N] v) => (bool c2, float[N, N] v2) {
          c2 = Identity(c)
          half = Constant <value = float {0.5}> ()
          h = Mul(v, half)
          v2 = Add(h, a)
        }
      >
    }
    """
    lowered = []
    lower = Code.lower
    monkeypatch.setattr(Code, "lower", lambda self, inputs: lowered.append(1) or lower(self, inputs))
    executable = compiled(parsed(text))
    a = rng.standard_normal((3, 3)).astype(np.float32)
    y = executable.run({"trips": np.array(60), "a": a})["y"]
    np.testing.assert_allclose(y, 2 * a, rtol=1e-5)
    assert len(lowered) == 2


def test_a_loop_in_a_loop_reads_values_of_both(rng) -> None:
    text = """
    nested (int64 n, float[N] x) => (float[N] y) {
      one = Constant <value_float = 1.0> ()
      y = Loop (n, , x) <
        body = outer (int64 i, bool c, float[N] v) => (bool c2, float[N] v2) {
          c2 = Identity(c)
          base = Add(v, one)
          v2 = Loop (n, , v) <
            body = inner (int64 j, bool d, float[N] u) => (bool d2, float[N] u2) {
              d2 = Identity(d)
              even = Constant <value_int = 1> ()
              is_one = Equal(j, even)
              u2 = If (is_one) <then_branch = t () => (float[N] r) { r = Sub(base, u) },
                                else_branch = e () => (float[N] r) { q = Add(u, x)  r = Add(q, one) }>
            }
          >
        }
      >
    }
    """
    x = rng.standard_normal(4).astype(np.float32)
    agree(parsed(text), *({"n": np.array(n), "x": x} for n in (0, 1, 2, 4)))


@pytest.mark.parametrize("direction", [0, 1])
def test_scan_slices_any_axis_in_either_direction(rng, direction: int) -> None:
    text = f"""
    scan (float[B] s, float[B, T] x, float[T, B] z) => (float[B] last, float[B, T] y) {{
      last, y = Scan (s, x, z) <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_output_axes = [1],
          scan_input_directions = [0, {direction}], scan_output_directions = [{direction}],
          body = b (float[B] a, float[B] p, float[B] q) => (float[B] a2, float[B] out) {{
            t = Mul(p, q)
            a2 = Add(a, t)
            out = Sub(a2, p)
          }}>
    }}
    """
    feeds = {name: rng.standard_normal(shape) for name, shape in {"s": 3, "x": (3, 6), "z": (6, 3)}.items()}
    agree(parsed(text), {name: value.astype(np.float32) for name, value in feeds.items()})


def test_sequences_pass_through_loops_and_maps(rng) -> None:
    text = """
    sequences (float[N] x, float[M] z) => (float[K] y, int64 n) {
      empty = SequenceEmpty()
      three = Constant <value_int = 3> ()
      s = Loop (three, , empty) <
        body = b (int64 i, bool c, seq(float[N]) v) => (bool c2, seq(float[N]) v2) {
          c2 = Identity(c)
          f = Cast <to = 1> (i)
          item = Mul(x, f)
          v2 = SequenceInsert(v, item)
        }
      >
      more = SequenceInsert(s, z)
      mapped = SequenceMap (more, x) <
        body = m (float[P] item, float[N] other) => (float[P] out) {
          total = ReduceSum <keepdims = 0> (other)
          out = Add(item, total)
        }
      >
      y = ConcatFromSequence <axis = 0> (mapped)
      n = SequenceLength(mapped)
    }
    """
    x, z = (rng.standard_normal(size).astype(np.float32) for size in (3, 2))
    found = compiled(parsed(text)).run({"x": x, "z": z})
    expected = np.concatenate([x * 0, x, x * 2, z]) + x.sum()
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-6)
    assert found["n"] == 4


def test_functions_of_other_operator_sets_keep_their_meaning(rng) -> None:
    header = '<ir_version: 10, opset_import: ["": 21, "own": 1]>\n'
    text = """
    calls (float[N, M] x) => (float[N, M, A] y) {
      t = own.Wrap <axis = 2> (x)
      y = own.Wrap2(t)
    }
    <domain: "own", opset_import: ["": 11]>
    Wrap <axis> (a) => (b) { c = Unsqueeze <axes = [2]> (a)  b = Softmax <axis = 0> (c) }
    <domain: "own", opset_import: ["": 21]>
    Wrap2 (a) => (b) { b = Add(a, a) }
    """
    x = rng.standard_normal((2, 3)).astype(np.float32)
    found = compiled(parsed(text, header)).run({"x": x})["y"]
    # Before set 13, Softmax takes all dimensions from its axis on as one.
    expected = 2 * np.exp(x) / np.exp(x).sum()
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-5)


def test_a_condition_of_several_elements_is_refused(rng) -> None:
    text = """
    several (bool[N] c, float[M] x) => (float[M] y) {
      y = If (c) <then_branch = t () => (float[M] v) { v = Add(x, x) },
                  else_branch = e () => (float[M] v) { v = Mul(x, x) }>
    }
    """
    executable = compiled(parsed(text))
    x = np.ones(2, np.float32)
    with pytest.raises(InputError, match="one element"):
        executable.run({"c": np.array([True, False]), "x": x})
    assert executable.run({"c": np.array([True]), "x": x})["y"].tolist() == [2, 2]


def test_what_a_run_returns_is_the_callers(rng) -> None:
    text = """
    passing (seq(float[N]) s) => (seq(float[N]) t, string[2] words) {
      t = Identity(s)
      words = Constant <value = string[2] {"a", "b"}> ()
    }
    """
    executable = compiled(parsed(text))
    given = [np.zeros(2, np.float32)]
    first = executable.run({"s": given})
    first["t"][0][:] = 1
    first["t"].append(None)
    first["words"][:] = "c"
    assert given[0].tolist() == [0, 0]
    assert executable.run({"s": given})["words"].tolist() == ["a", "b"]


def test_a_failure_of_the_host_names_the_node(rng) -> None:
    text = """
    empty (seq(float[N]) s, int64 i) => (float[N] y) { y = SequenceAt(s, i) }
    """
    executable = compiled(parsed(text))
    with pytest.raises(EngineError, match="position 5 is none of a sequence of 1") as caught:
        executable.run({"s": [np.zeros(2, np.float32)], "i": np.array(5)})
    assert "SequenceAt" in str(caught.value)


def test_nodes_that_nothing_runs_are_listed() -> None:
    text = """g (float[N] x) => (float[N] y) { t = Neg(x)  y = strange.Thing(t) }"""
    model = parsed(text, '<ir_version: 10, opset_import: ["": 21, "strange": 1]>\n')
    with pytest.raises(UnsupportedModelError) as caught:
        engines.compile(model, "native")
    assert [problem.operator for problem in caught.value.problems] == ["strange::Thing-1"]
