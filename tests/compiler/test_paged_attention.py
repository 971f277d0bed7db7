"""Attention over pages, and writing to them, against NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from educe import formats
from educe.compiler.emit import BF16, F32, I8, Kind
from educe.compiler.kernels.attention_items import ITEM_ROWS
from educe.compiler.kernels.kv_cache import HeadBlock
from educe.errors import InputError, ModelFileError
from educe.formats.onnx_types import read_signature
from educe.model import Model
from educe.model.digest import Digest
from educe.model.signature import NUMPY_TYPES
from educe.pages import empty
from tests.compiler.models import FLOAT, native

KINDS = (F32, BF16, I8)
TYPES = {F32: FLOAT, BF16: TensorProto.BFLOAT16, I8: TensorProto.INT8}


def items_of(lengths: Sequence[tuple[int, int]], group: int, rows: int = ITEM_ROWS) -> np.ndarray:
    """Return the items of sequences that have so many keys before their so many new tokens."""
    items, token = [], 0
    for sequence, (before, count) in enumerate(lengths):
        for first in range(0, count * group, rows):
            items.append((token, first, min(rows, count * group - first), sequence, before))
        token += count
    return np.array(items, np.int64).reshape(-1, 5)


def rounded(x: np.ndarray, kind: Kind) -> np.ndarray:
    """Return what a cache of a kind keeps of keys or values, [..., features]."""
    if kind is F32:
        return x
    if kind is BF16:
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    most = np.abs(x).max(axis=-1, keepdims=True)
    return np.rint(x * (np.float32(127) / most)) * (most / np.float32(127))


def expected(
    q: np.ndarray,
    keys: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    lengths: Sequence[tuple[int, int]],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
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


def own_model(nodes: list[onnx.NodeProto], inputs: dict[str, Any], output: tuple[int, Any]) -> Model:
    """Return a model of Educe's own operators, which no file may have."""
    graph = helper.make_graph(
        nodes,
        "pages",
        [helper.make_tensor_value_info(name, *declared) for name, declared in inputs.items()],
        [helper.make_tensor_value_info("y", *output)],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("educe", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(ModelFileError, match="which is for graphs that Educe makes itself"):
        formats.load(proto.SerializeToString())
    return Model(ir.from_proto(proto), read_signature(proto.graph), "pages", None, Digest([]), 0, {})


@dataclass
class Cache:
    """A cache of sequences that have so many keys, each in pages of its own."""

    rng: np.random.Generator
    kind: Kind
    heads: int
    features: int
    page: int
    lengths: Sequence[int]
    pool: np.ndarray = field(init=False)
    table: np.ndarray = field(init=False)
    keys: list[np.ndarray] = field(init=False)
    values: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        needed = [-(-length // self.page) for length in self.lengths]
        order = self.rng.permutation(sum(needed) + 3).astype(np.int32)
        shape = self.heads, HeadBlock(self.kind, self.page, self.features).elements
        self.pool = empty((len(order), *shape), NUMPY_TYPES[self.kind.name])
        self.pool.view(np.uint8)[...] = 0xFF
        self.table = np.full((len(needed), max(needed) + 1), -1, np.int32)
        for row, own in zip(self.table, np.split(order, np.cumsum(needed)), strict=False):
            row[: len(own)] = own
        self.keys, self.values = (
            [
                self.rng.standard_normal((length, self.heads, self.features)).astype(np.float32)
                for length in self.lengths
            ]
            for _ in range(2)
        )
        self.write()

    def slots(self) -> np.ndarray:
        """Return the place of each key."""
        places = [np.arange(length) for length in self.lengths]
        rows = zip(self.table, places, strict=True)
        found = [row[at // self.page].astype(np.int64) * self.page + at % self.page for row, at in rows]
        return np.concatenate(found)

    def write(self) -> None:
        """Write all keys and values to the pages."""
        k, v, slots = np.concatenate(self.keys), np.concatenate(self.values), self.slots()
        declared = {"k": (FLOAT, k.shape), "v": (FLOAT, v.shape), "slots": (TensorProto.INT64, slots.shape)}
        of_pool = TYPES[self.kind], self.pool.shape
        node = helper.make_node(
            "CacheWrite", ["pool", "k", "v", "slots"], ["y"], domain="educe", page=self.page
        )
        made = own_model([node], {"pool": of_pool, **declared}, of_pool)
        native(made, threads=2).run({"pool": self.pool, "k": k, "v": v, "slots": slots})

    def attention(
        self,
        q: np.ndarray,
        items: np.ndarray,
        *,
        threads: int = 2,
        bias: np.ndarray | None = None,
        **how: Any,
    ) -> np.ndarray:
        """Return the attention of rows."""
        inputs = {
            "q": (FLOAT, q.shape),
            "pool": (TYPES[self.kind], self.pool.shape),
            "table": (TensorProto.INT32, self.table.shape),
            "items": (TensorProto.INT64, ["n", 5]),
        }
        feeds = {"q": q, "pool": self.pool, "table": self.table, "items": items}
        if bias is not None:
            inputs["bias"], feeds["bias"] = (FLOAT, bias.shape), bias
        node = helper.make_node("PagedAttention", [*inputs], ["y"], domain="educe", page=self.page, **how)
        made = own_model([node], inputs, (FLOAT, q.shape))
        found: np.ndarray = native(made, threads=threads).run(feeds)["y"]
        return found

    def expected(self, q: np.ndarray, lengths: Sequence[tuple[int, int]], **how: Any) -> np.ndarray:
        """Return the same in NumPy."""
        kept = ([rounded(each, self.kind) for each in all_] for all_ in (self.keys, self.values))
        return expected(q, *kept, lengths, **how)

    def queries(self, count: int, group: int) -> np.ndarray:
        """Return so many random queries."""
        return self.rng.standard_normal((count, self.heads * group, self.features)).astype(np.float32)


def cache_of(rng, lengths: Sequence[tuple[int, int]], kind=F32, heads=2, features=64, page=16) -> Cache:
    return Cache(rng, kind, heads, features, page, [before + count for before, count in lengths])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("heads", "group", "features", "page", "window", "softcap"),
    [
        (2, 7, 64, 64, 0, 0.0),
        (1, 1, 8, 16, 0, 0.0),
        (3, 4, 40, 64, 11, 0.0),
        (1, 20, 96, 32, 0, 5.0),
        (2, 3, 128, 64, 70, 0.0),
    ],
)
def test_tokens_see_the_keys_of_their_own_pages(
    rng, kind, heads, group, features, page, window, softcap
) -> None:
    lengths = [(12, 40), (3, 1), (0, 9), (64, 1), (300, 33)]
    cache = cache_of(rng, lengths, kind, heads, features, page)
    q = cache.queries(sum(count for _, count in lengths), group)
    how = {"scale": 0.3, "window": window, "softcap": softcap}
    found = [cache.attention(q, items_of(lengths, group), threads=threads, **how) for threads in (1, 2)]
    # A matrix unit takes queries and weights as sums of two bf16, of 16 bits.
    near = 5e-5 if kind is BF16 else 2e-5
    np.testing.assert_allclose(found[0], cache.expected(q, lengths, **how), rtol=near, atol=near)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize(("group", "page"), [(1, 16), (7, 16), (7, 64)])
def test_bits_do_not_depend_on_what_else_runs_nor_on_threads(rng, kind, window, group, page) -> None:
    lengths = [(0, 700), (0, 5), (0, 260), (0, 65)]
    cache = cache_of(rng, lengths, kind, page=page)
    q = cache.queries(1030, group)
    whole = cache.attention(q, items_of(lengths, group), window=window)
    ends = np.cumsum([count for _, count in lengths])
    for sequence, end in enumerate(ends):
        last = lengths[sequence][1] - 1
        item = np.array([(0, 0, group, sequence, last)], np.int64)
        for threads in (1, 2, 5):
            alone = cache.attention(q[end - 1 : end], item, threads=threads, window=window)
            np.testing.assert_array_equal(alone[0], whole[end - 1])
    few = cache.attention(q, items_of(lengths, group, 5), window=window)
    np.testing.assert_array_equal(few, whole)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_keys_are_written_to_their_slots_only(rng, kind) -> None:
    cache = cache_of(rng, [(0, 21), (0, 16), (0, 70)], kind, 3, 24)
    before, block = cache.pool.copy(), HeadBlock(kind, 16, 24)
    used = set(np.unique(cache.table[cache.table >= 0]))
    for page, (found, kept) in enumerate(zip(cache.pool, before, strict=True)):
        assert page in used or (found.view(np.uint8) == 0xFF).all(), kept
    page, numbers = cache.table[2, 4], slice(0, 6)
    keys = cache.pool[page][:, : block.values_at].reshape(3, 24, 16).astype(np.float32)[:, :, numbers]
    values = (
        cache.pool[page][:, block.values_at : block.scales_at]
        .reshape(3, 16, 32)
        .astype(np.float32)[:, numbers]
    )
    scales = np.ones((3, 2, 6), np.float32)
    if kind is I8:
        ends = np.ascontiguousarray(cache.pool[page][:, block.scales_at :])
        scales = ends.view(np.float32).reshape(3, 2, 16)[:, :, numbers]
    new = [rounded(each[2][64:], kind) for each in (cache.keys, cache.values)]
    np.testing.assert_allclose((keys * scales[:, 0, None]).transpose(2, 0, 1), new[0], rtol=1e-6)
    np.testing.assert_allclose(
        (values * scales[:, 1, :, None])[..., :24].transpose(1, 0, 2), new[1], rtol=1e-6
    )
    assert (values[..., 24:] == 0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("reach", [None, 0, 9, 200])
@pytest.mark.parametrize(("heads", "group", "features"), [(2, 1, 64), (2, 3, 24)])
def test_tokens_see_all_keys_and_scores_are_changed_by_distance(
    rng, causal, reach, heads, group, features
) -> None:
    lengths = [(7, 31), (100, 1), (1, 40), (33, 33)]
    cache = cache_of(rng, lengths, F32, heads, features)
    q = cache.queries(105, group)
    how: dict[str, Any] = {"scale": 0.3, "causal": int(causal)}
    if reach is not None:
        how["bias"] = rng.standard_normal((heads * group, 2 * reach + 1)).astype(np.float32)
    items = items_of(lengths, group)
    found = cache.attention(q, items, **how)
    np.testing.assert_allclose(found, cache.expected(q, lengths, **how), rtol=2e-5, atol=2e-5)
    alone = cache.attention(q, items[items[:, 3] == 1], **how)
    np.testing.assert_array_equal(alone[31], found[31])


@pytest.mark.parametrize(
    ("shape", "attributes", "message"),
    [([4, 5], {"causal": 0, "window": 3}, "window"), ([4, 4], {}, "bias"), ([2, 5], {}, "bias")],
)
def test_windows_and_biases_that_cannot_be_are_errors(rng, shape, attributes, message) -> None:
    cache = cache_of(rng, [(0, 5)], features=8)
    bias = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=message):
        cache.attention(cache.queries(1, 2), items_of([(4, 1)], 2), bias=bias, **attributes)


def test_items_of_what_is_not_there_are_left_out(rng) -> None:
    cache = cache_of(rng, [(20, 3)], features=8)
    q, right = cache.queries(3, 2), (0, 0, 6, 0, 20)
    expected = cache.attention(q, np.array([right], np.int64))
    top = 2**63 - 1
    for wrong in ((top, 4, 4, 0, 0), (3, 0, 1, 0, 0), (-1, 0, 1, 0, 0), (0, top, 2, 0, 0), (0, 0, 1, 0, -9)):
        found = cache.attention(q, np.array([right, wrong], np.int64))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("table", [np.zeros((0, 2), np.int32), np.zeros((1, 0), np.int32)])
def test_no_pages_are_an_error(rng, table) -> None:
    cache = cache_of(rng, [(0, 5)], features=8)
    cache.table = table
    with pytest.raises(InputError, match="pages"):
        cache.attention(cache.queries(1, 1), np.zeros((1, 5), np.int64))


@pytest.mark.parametrize(("page", "message"), [(8, "multiple of 16"), (32, "pages of 32 keys")])
def test_pages_of_another_size_are_an_error(rng, page, message) -> None:
    cache = cache_of(rng, [(0, 5)], features=8)
    cache.page = page
    with pytest.raises(InputError, match=message):
        cache.attention(cache.queries(1, 1), np.zeros((1, 5), np.int64))
