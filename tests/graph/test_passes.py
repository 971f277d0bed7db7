"""Passes keep what graphs mean: on random graphs, by ONNX's evaluator, and do what they say, case by case."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from educe.graph.normalize import infer_shapes
from educe.graph.passes import expand_functions, forget_shapes, optimize, passes
from educe.graph.passes.base import NEWEST_OPSET
from educe.model.walk import all_nodes
from tests.graph.random_graphs import random_model

Arrays = dict[str, np.ndarray]


class Attention(OpRun):
    """``educe.Attention`` by its definition."""

    op_domain = "educe"

    def _run(self, q: Any, k: Any, v: Any, mask: Any = None, **attributes: Any) -> tuple[Any]:
        scores = q @ np.swapaxes(k, -1, -2) * np.float32(attributes["scale"])
        cap = np.float32(attributes.get("softcap") or 0)
        scores = np.tanh(scores / cap) * cap if cap else scores
        if mask is not None:
            bound = attributes.get("bound")
            scores = scores + mask if bound is None else np.where(mask <= bound, mask, scores + mask)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        return ((np.nan_to_num(weights, nan=0) if attributes.get("zeros") else weights) @ v,)


class RotaryEmbedding(OpRun):
    """``educe.RotaryEmbedding`` by its definition."""

    op_domain = "educe"

    def _run(self, x: Any, cos: Any, sin: Any, **attributes: Any) -> tuple[Any]:
        turned, half = np.empty_like(x), x.shape[-1] // 2
        a, b = (
            (np.s_[..., ::2], np.s_[..., 1::2])
            if attributes["interleaved"]
            else (np.s_[..., :half], np.s_[..., half:])
        )
        turned[a], turned[b] = -x[b], x[a]
        return (x * cos + turned * sin,)


def evaluated(model: ir.Model, feeds: Arrays) -> list[np.ndarray]:
    """Run `model` by ONNX's evaluator."""
    model = model.clone()
    expand_functions(model, lambda _domain, name, _version: name != "GroupNormalization")
    if any(node.version for node in all_nodes(model)):
        model.opset_imports[""] = NEWEST_OPSET
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        evaluator = ReferenceEvaluator(ir.serde.serialize_model(model), new_ops=[Attention, RotaryEmbedding])
        return [np.asarray(each) for each in evaluator.run(None, feeds)]


def perturbed(feeds: Arrays) -> Arrays:
    """Return inputs that differ by a rounding."""
    scale = np.float32(1 + 5e-7)
    return {name: each * scale if each.dtype == np.float32 else each for name, each in feeds.items()}


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], noise: list[np.ndarray] | None) -> None:
    """Compare outputs: by bits, or those of f32 within what a rounding of the inputs changes and 1e-5."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if one.dtype != np.float32 or noise is None:
            np.testing.assert_array_equal(one, other)
            if one.dtype == np.float32:
                np.testing.assert_array_equal(np.copysign(1, one)[one == 0], np.copysign(1, other)[one == 0])
        else:
            close = np.isclose(
                one, other, rtol=1e-5, atol=1e-5 * _largest(other) + 20 * noise[number], equal_nan=True
            )
            assert close.all(), (one[~close], other[~close])


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max(initial=0))


def noise_of(model: ir.Model, feeds: Arrays, expected: list[np.ndarray]) -> list[np.ndarray]:
    """Return how much each output changes when the inputs change by a rounding."""
    noise = []
    for one, other in zip(evaluated(model, perturbed(feeds)), expected, strict=True):
        with np.errstate(all="ignore"):
            change = np.abs(one - other) if one.dtype == np.float32 else np.zeros(())
        noise.append(np.nan_to_num(change, nan=0, posinf=0))
    return noise


def check(number: int, exact: bool) -> Counter[str]:
    """Compare a random graph before and after each pass and all passes; return which changed something."""
    proto, feeds = random_model(Random(number), exact)
    original = ir.serde.deserialize_model(proto)
    expected = evaluated(original, feeds)
    noise = None if exact else noise_of(original, feeds, expected)
    changes: Counter[str] = Counter()
    model = original.clone()
    forget_shapes(model)
    for each in itertools.chain(*passes(lambda *_: True)):
        infer_shapes(model)
        if each.apply(model):
            changes[type(each).__name__] += 1
            assert_same(evaluated(model, feeds), expected, noise)
            onnx.checker.check_graph(_checked(model).graph, _context(model))
    assert_same(evaluated(optimize(original), feeds), expected, noise)
    return changes


def _checked(model: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.SetInParent()
    return proto


def _context(model: ir.Model) -> Any:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = 10
    context.opset_imports = {**model.opset_imports, "": NEWEST_OPSET, "educe": 1}
    return context


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("exact", [True, False])
def test_random_graphs_keep_their_meaning(part: int, exact: bool) -> None:
    is_deep = settings().max_examples > settings.get_profile("default").max_examples

    @settings(deadline=None, max_examples=settings().max_examples if is_deep else 13, database=None)
    @seed(part)
    @given(st.integers(0, 2**40))
    def run(number: int) -> None:
        check(number, exact)

    run()


def test_every_pass_has_something_to_do_in_random_graphs() -> None:
    changes: Counter[str] = Counter()
    for number in range(30):
        changes += check(number, exact=False)
    names = {type(each).__name__ for each in itertools.chain(*passes(lambda *_: True))}
    assert names - changes.keys() == {"WeightDequantization"}
