"""Attention over pages, and writing to them, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from educe import formats
from educe.compiler.kernels.paged_attention import rows_of_item
from educe.compiler.target import host_target
from educe.errors import InputError, ModelFileError
from educe.formats.onnx_types import read_signature
from educe.model import Model
from educe.model.digest import Digest
from tests.compiler.models import FLOAT, native


def items_of(lengths: list[tuple[int, int]], group: int, rows: int) -> np.ndarray:
    """Return the items of sequences that have so many keys before their so many new tokens."""
    items, token = [], 0
    for sequence, (before, count) in enumerate(lengths):
        for first in range(0, count * group, rows):
            items.append((token, first, min(rows, count * group - first), sequence, before))
        token += count
    return np.array(items, np.int64).reshape(-1, 5)


def expected(
    q: np.ndarray,
    keys: list[np.ndarray],
    values: list[np.ndarray],
    lengths: Any,
    scale: float,
    window: int,
    softcap: float,
    causal: bool = True,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    out, token = np.zeros_like(q), 0
    for (before, count), k, v in zip(lengths, keys, values, strict=True):
        group = q.shape[1] // k.shape[1]
        for number in range(count):
            here = before + number if causal else number
            last = here + 1 if causal else before
            first = max(0, last - window) if window else 0
            for head in range(q.shape[1]):
                scores = scale * (k[first:last, head // group].astype(float) @ q[token, head].astype(float))
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                if bias is not None:
                    reach = bias.shape[1] // 2
                    scores += bias[head, reach + np.clip(np.arange(first, last) - here, -reach, reach)]
                weights = np.exp(scores - scores.max())
                out[token, head] = weights / weights.sum() @ v[first:last, head // group]
            token += 1
    return out


def own_model(nodes: list[onnx.NodeProto], inputs: dict[str, Any]) -> Model:
    """Return a model of Educe's own operators, which no file may have."""
    graph = helper.make_graph(
        nodes,
        "pages",
        [helper.make_tensor_value_info(name, *declared) for name, declared in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, inputs["q"][1])],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("educe", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(ModelFileError, match="which is for graphs that Educe makes itself"):
        formats.load(proto.SerializeToString())
    return Model(ir.from_proto(proto), read_signature(proto.graph), "pages", None, Digest([]), 0, {})


LENGTHS = {
    "one token of each": [(0, 1), (5, 1), (31, 1), (130, 1)],
    "a prompt": [(0, 77)],
    "prompts and tokens": [(12, 40), (3, 1), (0, 9), (64, 1), (100, 33)],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize(("heads", "group", "features"), [(2, 7, 64), (1, 1, 8), (3, 4, 40), (1, 20, 16)])
@pytest.mark.parametrize(("page", "window", "softcap"), [(16, 0, 0.0), (32, 11, 0.0), (16, 0, 5.0)])
def test_tokens_see_the_keys_of_their_own_pages(
    rng, lengths, heads, group, features, page, window, softcap
) -> None:
    tokens = sum(count for _, count in lengths)
    needed = [-(-(before + count) // page) for before, count in lengths]
    pages = sum(needed) + 3
    order = rng.permutation(pages)
    table = np.full((len(lengths), max(needed) + 1), -1, np.int32)
    pools = rng.standard_normal((2, pages, heads, page, features)).astype(np.float32)
    q, k, v = (
        rng.standard_normal((tokens, each, features)).astype(np.float32)
        for each in (heads * group, heads, heads)
    )
    slots, keys, values, token = np.empty(tokens, np.int64), [], [], 0
    for number, (before, count) in enumerate(lengths):
        own, order = order[: needed[number]], order[needed[number] :]
        table[number, : len(own)] = own
        places = np.arange(before, before + count)
        slots[token : token + count] = own[places // page] * page + places % page
        for pool, new, rows in ((pools[0], k, keys), (pools[1], v, values)):
            whole = pool[own].transpose(0, 2, 1, 3).reshape(-1, heads, features)[: before + count].copy()
            whole[before:] = new[token : token + count]
            rows.append(whole)
        token += count
    nodes = [
        helper.make_node("CacheWrite", ["k_pool", "k", "slots"], ["k_now"], domain="educe"),
        helper.make_node("CacheWrite", ["v_pool", "v", "slots"], ["v_now"], domain="educe"),
        helper.make_node(
            "PagedAttention",
            ["q", "k_now", "v_now", "table", "items"],
            ["y"],
            domain="educe",
            scale=0.3,
            window=window,
            softcap=softcap,
        ),
    ]
    inputs = {
        "q": (FLOAT, q.shape),
        "k": (FLOAT, k.shape),
        "v": (FLOAT, v.shape),
        "k_pool": (FLOAT, pools[0].shape),
        "v_pool": (FLOAT, pools[0].shape),
        "slots": (TensorProto.INT64, [tokens]),
        "table": (TensorProto.INT32, table.shape),
        "items": (TensorProto.INT64, ["n", 5]),
    }
    made = own_model(nodes, inputs)
    items = items_of(lengths, group, rows_of_item(host_target()))
    before = pools.copy()
    bits = []
    for threads in (1, 2):
        pools[...] = before
        feeds = {
            "q": q,
            "k": k,
            "v": v,
            "k_pool": pools[0],
            "v_pool": pools[1],
            "slots": slots,
            "table": table,
            "items": items,
        }
        bits.append(native(made, threads=threads).run(feeds)["y"])
    np.testing.assert_allclose(
        bits[0], expected(q, keys, values, lengths, 0.3, window, softcap), rtol=2e-5, atol=2e-5
    )
    np.testing.assert_array_equal(bits[0], bits[1])
    changed = (pools != before).any(axis=(0, 2, 4))
    assert set(np.flatnonzero(changed)) <= set(slots.tolist())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("reach", [None, 0, 9, 200])
@pytest.mark.parametrize(("heads", "group", "features"), [(2, 1, 64), (2, 3, 24)])
def test_tokens_see_all_keys_and_scores_are_changed_by_distance(
    rng, causal, reach, heads, group, features
) -> None:
    lengths = [(7, 31), (100, 1), (1, 40), (33, 33)]
    page, table = 16, np.arange(28, dtype=np.int32).reshape(4, 7)[::-1].copy()
    tokens, seen = sum(count for _, count in lengths), 7 * page
    pools = rng.standard_normal((2, 28, heads, page, features)).astype(np.float32)
    q = rng.standard_normal((tokens, heads * group, features)).astype(np.float32)
    keys, values = (
        [pool[row].transpose(0, 2, 1, 3).reshape(seen, heads, features) for row in table] for pool in pools
    )
    inputs = {
        "q": (FLOAT, q.shape),
        "k_pool": (FLOAT, pools[0].shape),
        "v_pool": (FLOAT, pools[0].shape),
        "table": (TensorProto.INT32, table.shape),
        "items": (TensorProto.INT64, ["n", 5]),
    }
    feeds = {"q": q, "k_pool": pools[0], "v_pool": pools[1], "table": table}
    bias = None
    if reach is not None:
        bias = rng.standard_normal((heads * group, 2 * reach + 1)).astype(np.float32)
        inputs["bias"], feeds["bias"] = (FLOAT, bias.shape), bias
    node = helper.make_node("PagedAttention", [*inputs], ["y"], domain="educe", scale=0.3, causal=int(causal))
    executable = native(own_model([node], inputs), threads=2)
    items = items_of(lengths, group, rows_of_item(host_target()))
    found = executable.run({**feeds, "items": items})["y"]
    right = expected(q, keys, values, lengths, 0.3, 0, 0.0, causal, bias)
    np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-5)
    alone = executable.run({**feeds, "items": items[items[:, 3] == 1]})["y"]
    np.testing.assert_array_equal(alone[31], found[31])


@pytest.mark.parametrize(
    ("shape", "attributes", "message"),
    [([4, 5], {"causal": 0, "window": 3}, "window"), ([4, 4], {}, "bias"), ([2, 5], {}, "bias")],
)
def test_windows_and_biases_that_cannot_be_are_errors(rng, shape, attributes, message) -> None:
    q, pool = (rng.standard_normal(size).astype(np.float32) for size in ((1, 4, 8), (2, 2, 16, 8)))
    inputs = {
        "q": (FLOAT, q.shape),
        "k_pool": (FLOAT, pool.shape),
        "v_pool": (FLOAT, pool.shape),
        "table": (TensorProto.INT32, [1, 2]),
        "items": (TensorProto.INT64, [1, 5]),
        "bias": (FLOAT, shape),
    }
    node = helper.make_node("PagedAttention", [*inputs], ["y"], domain="educe", **attributes)
    table, items = np.zeros((1, 2), np.int32), np.array([[0, 0, 2, 0, 0]], np.int64)
    feeds = {"q": q, "k_pool": pool, "v_pool": pool, "table": table, "items": items}
    with pytest.raises(InputError, match=message):
        native(own_model([node], inputs)).run({**feeds, "bias": np.zeros(shape, np.float32)})


def test_items_of_what_is_not_there_are_left_out(rng) -> None:
    q = rng.standard_normal((3, 4, 8)).astype(np.float32)
    pools = rng.standard_normal((2, 2, 2, 16, 8)).astype(np.float32)
    node = helper.make_node(
        "PagedAttention", ["q", "k_pool", "v_pool", "table", "items"], ["y"], domain="educe", scale=0.3
    )
    inputs = {
        "q": (FLOAT, q.shape),
        "k_pool": (FLOAT, pools[0].shape),
        "v_pool": (FLOAT, pools[0].shape),
        "table": (TensorProto.INT32, [1, 2]),
        "items": (TensorProto.INT64, ["n", 5]),
    }
    executable = native(own_model([node], inputs), threads=1)
    feeds = {"q": q, "k_pool": pools[0], "v_pool": pools[1], "table": np.array([[1, 0]], np.int32)}
    right = (0, 0, 6, 0, 20)
    expected = executable.run({**feeds, "items": np.array([right], np.int64)})["y"]
    top = 2**63 - 1
    for wrong in ((top, 4, 4, 0, 0), (3, 0, 1, 0, 0), (-1, 0, 1, 0, 0), (0, top, 2, 0, 0), (0, 0, 1, 0, -9)):
        found = executable.run({**feeds, "items": np.array([right, wrong], np.int64)})["y"]
        np.testing.assert_array_equal(found[:3].reshape(-1)[:48], expected.reshape(-1)[:48])


@pytest.mark.parametrize("table", [np.zeros((0, 2), np.int32), np.zeros((1, 0), np.int32)])
def test_no_pages_are_an_error(rng, table) -> None:
    q = rng.standard_normal((1, 1, 8)).astype(np.float32)
    pool = rng.standard_normal((2, 1, 16, 8)).astype(np.float32)
    node = helper.make_node(
        "PagedAttention", ["q", "k_pool", "v_pool", "table", "items"], ["y"], domain="educe"
    )
    inputs = {
        "q": (FLOAT, q.shape),
        "k_pool": (FLOAT, pool.shape),
        "v_pool": (FLOAT, pool.shape),
        "table": (TensorProto.INT32, table.shape),
        "items": (TensorProto.INT64, ["n", 5]),
    }
    feeds = {"q": q, "k_pool": pool, "v_pool": pool, "table": table, "items": np.zeros((1, 5), np.int64)}
    with pytest.raises(InputError, match="pages"):
        native(own_model([node], inputs)).run(feeds)
