"""Attention, rotation by position and sums by labels, against their definitions in f64."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from educe.errors import InputError
from tests.compiler.models import model, native
from tests.compiler.test_product import KINDS, assert_near, random, run


def attended(q, k, v, mask=None, scale=None, softcap=0.0, shown=None):
    """The definition; `shown` tells which keys a query sees."""
    q, k, v = (each.astype("f8") for each in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / np.sqrt(q.shape[-1]))
    scores = np.tanh(scores / softcap) * softcap if softcap else scores
    scores = scores if mask is None else scores + mask
    scores = scores if shown is None else np.where(shown, scores, -np.inf)
    best = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(best), 0, best))
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total == 0, 1, total) @ v


def node(inputs, outputs=("y",), **attributes):
    return helper.make_node("Attention", list(inputs), list(outputs), **attributes)


# batch, heads of q, heads of k, queries, keys, features of k, features of v
SIZES = [
    (1, 2, 2, 5, 7, 8, 8),
    (2, 4, 2, 40, 150, 20, 12),
    (2, 6, 1, 3, 300, 33, 17),
    (1, 2, 2, 1, 129, 64, 64),
    (3, 1, 1, 33, 1, 1, 5),
    (1, 2, 2, 100, 128, 16, 40),
]
MASKS = [
    None,
    (),
    (1,),
    (-1,),
    (-2, -1),
    (-2, 1),
    (1, 1, 1, -1),
    (-4, 1, 1, -1),
    (-4, -3, -2, -1),
    (-3, 1, -1),
]


def tensors(sizes, seed=0):
    batch, q_heads, heads, queries, keys, features, v_features = sizes
    return (
        random((batch, q_heads, queries, features), seed=seed),
        random((batch, heads, keys, features), seed=seed + 1),
        random((batch, heads, keys, v_features), seed=seed + 2),
    )


@pytest.mark.parametrize("of_mask", MASKS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention(sizes, of_mask):
    q, k, v = tensors(sizes)
    feeds = {"q": q, "k": k, "v": v}
    whole = (*q.shape[:3], k.shape[2])
    if of_mask is not None:
        feeds["m"] = random(tuple(whole[each] if each < 0 else 1 for each in of_mask), seed=9)
    found, launches = run([node(feeds)], feeds, opset=23)
    assert_near(found, attended(q, k, v, feeds.get("m")))
    assert launches[-1].kernel.template in ("attention", "pointwise", "transposed_copy", "woven_copy")
    assert sum(each.kernel.template == "attention" for each in launches) == 1


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_causal_attention_with_a_cache_and_bounded_scores(sizes):
    q, k, v = tensors(sizes)
    past = tensors((*sizes[:3], 1, 6, *sizes[5:]), seed=5)[1:]
    feeds = {"q": q, "k": k, "v": v, "pk": past[0], "pv": past[1]}
    given = ["q", "k", "v", "", "pk", "pv"]
    made = node(given, ["y", "nk", "nv"], is_causal=1, softcap=2.0, scale=0.3)
    inputs = {name: (1, each.shape) for name, each in feeds.items()}
    found = native(model([made], inputs, ["y", "nk", "nv"], opset=23)).run(feeds)
    whole_k, whole_v = np.concatenate([past[0], k], 2), np.concatenate([past[1], v], 2)
    shown = np.arange(whole_k.shape[2]) <= np.arange(q.shape[2])[:, None] + 6
    assert_near(found["y"], attended(q, whole_k, whole_v, None, 0.3, 2.0, shown))
    assert np.array_equal(found["nk"], whole_k)
    assert np.array_equal(found["nv"], whole_v)


def test_heads_side_by_side_are_read_and_written_where_they_lie():
    q, k, v = random((2, 9, 4 * 16)), random((2, 11, 2 * 16)), random((2, 11, 2 * 8))
    split = [
        each.reshape(2, each.shape[1], heads, -1).transpose(0, 2, 1, 3)
        for each, heads in ((q, 4), (k, 2), (v, 2))
    ]
    made = node("qkv", q_num_heads=4, kv_num_heads=2)
    found, launches = run([made], {"q": q, "k": k, "v": v}, opset=23)
    assert_near(found, attended(*split).transpose(0, 2, 1, 3).reshape(2, 9, -1))
    assert [each.kernel.template for each in launches] == ["attention"]


@pytest.mark.parametrize("kind", ["b1", "f4"])
def test_queries_that_see_nothing_are_zeros(kind):
    q, k, v = tensors(SIZES[1])
    shown = np.random.default_rng(2).random((40, 150)) < 0.2
    shown[3], shown[:, :140] = False, False
    mask = shown if kind == "b1" else np.where(shown, 0, -np.inf).astype("f4")
    feeds = {"q": q, "k": k, "v": v, "m": mask}
    inputs = {name: (helper.np_dtype_to_tensor_dtype(each.dtype), each.shape) for name, each in feeds.items()}
    executable = native(model([node(feeds)], inputs, ["y"], opset=23))
    assert all(segment.step is None for segment in executable.program(feeds))
    found = executable.run(feeds)["y"]
    assert_near(found, attended(q, k, v, shown=shown))
    assert not found[:, :, 3].any()


@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}], ids=str)
def test_keys_after_the_lengths_are_not_seen(attributes):
    q, k, v = tensors((3, 2, 2, 4, 20, 8, 8))
    lengths = np.array([20, 4, 9])
    feeds = {"q": q, "k": k, "v": v, "n": lengths}
    shown = np.arange(20) < lengths[:, None, None, None]
    if attributes:
        shown = shown & (np.arange(20) <= np.arange(4)[:, None] + (lengths - 4)[:, None, None, None])
    found, _ = run([node(["q", "k", "v", "", "", "", "n"], **attributes)], feeds, opset=24)
    assert_near(found, attended(q, k, v, shown=shown))


@pytest.mark.parametrize(("dtype", "tolerance"), [("f4", 1e-5), ("f8", 1e-13), ("f2", 3e-3)])
def test_attention_that_is_written_as_products_and_a_softmax(dtype, tolerance):
    q, k, v = (each.astype(dtype) for each in tensors((2, 3, 3, 20, 30, 16, 8)))
    mask = random((2, 1, 1, 30), dtype)
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "t"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["x"]),
        helper.make_node("Add", ["x", "m"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    kind = KINDS[dtype]
    feeds = {"q": q, "k": k, "v": v, "m": mask}
    inputs = {name: (kind, each.shape) for name, each in feeds.items()}
    executable = native(model(nodes, inputs, ["y"], {"scale": np.array(0.25, dtype)}))
    segments = executable.program(feeds)
    assert all(segment.step is None for segment in segments)
    kernels = [launch.kernel.template for segment in segments for launch in segment.launches]
    assert ("attention" in kernels) == (dtype != "f8")
    assert_near(executable.run(feeds)["y"], attended(q, k, v, mask, 0.25), tolerance)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("axis", "copies"), [(2, 1), (1, 3)])
def test_heads_that_a_graph_repeats_are_read_where_they_lie(axis, copies, scaled):
    q, k, v = tensors((2, 6, 2, 20, 30, 16, 8))
    wide = (2, 2, 3, 30) if axis == 2 else (2, 3, 2, 30)
    nodes = [helper.make_node("Mul", ["q", "scale"], ["r"])]
    for name in "kv":
        nodes += [
            helper.make_node("Unsqueeze", [name, "axes"], [f"{name}u"]),
            helper.make_node("Expand", [f"{name}u", f"{name}w"], [f"{name}e"]),
            helper.make_node("Reshape", [f"{name}e", "merged"], [f"{name}r"]),
        ]
    nodes += [
        helper.make_node("Mul", ["kr", "scale"], ["ks"]),
        helper.make_node("Transpose", ["ks" if scaled else "kr"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["r", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["w"], axis=-1),
        helper.make_node("MatMul", ["w", "vr"], ["y"]),
    ]
    nodes = [each for each in nodes if scaled or each.output[0] != "ks"]
    feeds = {"q": q, "k": k, "v": v}
    constants = {
        "axes": np.array([axis]),
        "merged": np.array([2, 6, 30, -1]),
        "scale": np.array(0.5, "f4"),
        "kw": np.array([*wide, 16]),
        "vw": np.array([*wide, 8]),
    }
    found, made = run(nodes, feeds, constants)
    repeated = (np.repeat(each, 3, 1) if axis == 2 else np.tile(each, (1, 3, 1, 1)) for each in (k, v))
    assert_near(found, attended(q, *repeated, scale=0.25 if scaled else 0.5))
    assert [each.kernel.template for each in made].count("pointwise") == copies


def chosen(number: float, *, zeros: bool, added: bool, dtype: str = "f4"):
    """Attention whose scores are chosen: its nodes, and its constants."""
    nodes = [
        helper.make_node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "t"], ["s"]),
        helper.make_node("Div", ["s", "cap"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "cap"], ["c"]),
        helper.make_node("Where", ["n", "c", "low"], ["d"]),
        helper.make_node("Add", ["d", "m"], ["e"]),
        helper.make_node("Softmax", ["e" if added else "d"], ["w"], axis=-1),
        helper.make_node("IsNaN", ["w"], ["u"]),
        helper.make_node("Where", ["u", "zero", "w"], ["z"]),
        helper.make_node("MatMul", ["z" if zeros else "w", "v"], ["y"]),
    ]
    skipped = ("" if zeros else "uz") + ("" if added else "e")
    nodes = [each for each in nodes if each.output[0] not in skipped]
    return nodes, {name: np.array(x, dtype) for name, x in (("cap", 5), ("low", number), ("zero", 0))}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("number", "added"), [(-np.inf, True), (-3e38, True), (-np.inf, False), (-2, False)])
def test_scores_may_be_chosen(number, added, zeros, dtype):
    q, k, v = (each.astype(dtype) for each in tensors((2, 3, 3, 20, 30, 16, 8)))
    shown = np.random.default_rng(3).random((2, 1, 20, 30)) < 0.4
    shown[1, 0, 4] = False
    feeds = {"q": q, "k": k, "v": v, "n": shown, "m": random((30,), dtype)}
    nodes, constants = chosen(number, zeros=zeros, added=added, dtype=dtype)
    inputs = {name: (helper.np_dtype_to_tensor_dtype(each.dtype), each.shape) for name, each in feeds.items()}
    executable = native(model(nodes, inputs, ["y"], constants))
    kernels = [launch.kernel.template for each in executable.program(feeds) for launch in each.launches]
    assert ("attention" in kernels) == (dtype == "f4")
    scores = np.where(shown, 5 * np.tanh(q.astype("f8") @ k.astype("f8").swapaxes(-1, -2) / 5), number)
    scores = scores + feeds["m"] if added else scores
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = (np.nan_to_num(weights, nan=0) if zeros else weights) @ v.astype("f8")
    assert np.isnan(expected[1, :, 4]).all() == (number == -np.inf and not zeros)
    np.testing.assert_allclose(executable.run(feeds)["y"], expected, 1e-5, 1e-5)


def test_hidden_scores_that_overflow_stay_hidden():
    q, k, v = tensors((1, 2, 2, 5, 7, 8, 8))
    k[:, :, 3] = 3e38
    q = np.abs(q) + 1
    shown = np.arange(7) != 3
    nodes, constants = chosen(-np.inf, zeros=False, added=False)
    nodes = [each for each in nodes if each.output[0] not in "abc"]
    nodes[2].input[1] = "s"
    feeds = {"q": q, "k": k, "v": v, "n": shown, "m": np.zeros(7, "f4")}
    inputs = {name: (helper.np_dtype_to_tensor_dtype(each.dtype), each.shape) for name, each in feeds.items()}
    found = native(model(nodes, inputs, ["y"], constants)).run(feeds)["y"]
    assert_near(found, attended(q, k[:, :, shown], v[:, :, shown], scale=1.0))


def test_half_precision():
    q, k, v = (each.astype("f2") for each in tensors(SIZES[0]))
    found, _ = run([node("qkv")], {"q": q, "k": k, "v": v}, opset=23)
    assert found.dtype == np.float16
    assert_near(found, attended(q, k, v), 2e-3)


def test_bits_do_not_depend_on_other_rows_or_the_threads():
    q, k, v = tensors((3, 4, 2, 50, 200, 24, 24))
    whole, _ = run([node("qkv")], {"q": q, "k": k, "v": v}, opset=23)
    two, _ = run([node("qkv")], {"q": q, "k": k, "v": v}, threads=2, opset=23)
    assert np.array_equal(two, whole)
    one, _ = run([node("qkv")], {"q": q[1:2, :, 7:20], "k": k[1:2], "v": v[1:2]}, opset=23)
    assert np.array_equal(one[0], whole[1, :, 7:20])


def test_numbers_that_are_not_finite_stay_with_their_queries():
    q, k, v = tensors(SIZES[1])
    q[1, 2, 3, 4] = np.nan
    found, _ = run([node("qkv")], {"q": q, "k": k, "v": v}, opset=23)
    touched = np.zeros(found.shape, bool)
    touched[1, 2, 3] = True
    assert np.array_equal(np.isnan(found), touched)


def test_no_keys_and_no_queries():
    for sizes in ((1, 2, 2, 3, 0, 4, 4), (1, 2, 2, 0, 3, 4, 4), (0, 2, 2, 3, 3, 4, 4), (1, 2, 2, 3, 3, 4, 0)):
        q, k, v = tensors(sizes)
        found, _ = run([node("qkv")], {"q": q, "k": k, "v": v}, opset=23)
        assert_near(found, attended(q, k, v))


def test_shapes_that_do_not_fit_are_refused():
    q, k, v = tensors(SIZES[0])
    for feeds in (
        {"q": q, "k": k[..., :5], "v": v},
        {"q": q, "k": k[:, :, :5], "v": v},
        {"q": q, "k": k, "v": v, "m": random((3, 7))},
        {"q": np.repeat(q, 2, 1)[:, :3], "k": k, "v": v},
    ):
        with pytest.raises(InputError):
            run([node(feeds)], feeds, opset=23)


@pytest.mark.parametrize("number", [-1, -4, 0, 3, 2**40])
def test_numbers_of_heads_that_cannot_be_are_refused(number):
    feeds = {name: random((2, 5, 32)) for name in "qkv"}
    with pytest.raises(InputError, match="heads"):
        run([node("qkv", q_num_heads=number, kv_num_heads=number)], feeds, opset=23)


def test_lengths_are_one_for_each_of_a_batch():
    feeds = dict(zip("qkv", tensors((2, 2, 2, 4, 7, 8, 8)), strict=True))
    for lengths in ([3], [3, 3, 3], [[3, 3]]):
        feeds["n"] = np.array(lengths)
        with pytest.raises(InputError, match="lengths"):
            run([node(["q", "k", "v", "", "", "", "n"])], feeds, opset=24)


@pytest.mark.parametrize(("name", "dtype"), [("m", "f8"), ("m", "f2"), ("m", "i8"), ("v", "f2")])
def test_a_mask_and_values_may_be_of_other_kinds_than_queries(name, dtype):
    feeds = dict(zip("qkv", tensors(SIZES[0]), strict=True))
    feeds["m"] = random((5, 7), seed=9) * 3
    feeds[name] = feeds[name].astype(dtype)
    inputs = {name: (KINDS[array.dtype.str[1:]], array.shape) for name, array in feeds.items()}
    found = native(model([node(feeds)], inputs, ["y"], opset=23)).run(feeds)["y"]
    assert_near(found, attended(**{"mask" if name == "m" else name: each for name, each in feeds.items()}))


def test_attention_reads_and_writes_only_its_own(monkeypatch):
    monkeypatch.setenv("EDUCE_GUARD", "1")
    for sizes in SIZES:
        feeds = dict(zip("qkv", tensors(sizes), strict=True))
        feeds["m"] = random((*feeds["q"].shape[:3], feeds["k"].shape[2]))
        nodes = [helper.make_node("Neg", [name], [f"{name}n"]) for name in feeds]
        nodes.append(node([f"{name}n" for name in feeds]))
        found, _ = run(nodes, feeds, opset=23)
        negative = {name: -each for name, each in feeds.items()}
        assert_near(found, attended(negative["q"], negative["k"], negative["v"], negative["m"]))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("dim", [0, 4])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("has_positions", [True, False])
def test_rotary_embedding(interleaved, dim, rank, has_positions):
    x = random((2, 5, 3 * 8)) if rank == 3 else random((2, 3, 5, 8))
    half = (dim or 8) // 2
    shape = (20, half) if has_positions else (2, 5, half)
    feeds = {"x": x, "c": random(shape), "s": random(shape, seed=1)}
    if has_positions:
        feeds["p"] = np.random.default_rng(0).integers(0, 20, (2, 5))
    attributes = {"num_heads": 3} if rank == 3 else {}
    made = helper.make_node(
        "RotaryEmbedding", list(feeds), ["y"], interleaved=interleaved, rotary_embedding_dim=dim, **attributes
    )
    found, _ = run([made], feeds, opset=23)
    inputs = [helper.make_tensor_value_info(n, KINDS[a.dtype.str[1:]], a.shape) for n, a in feeds.items()]
    graph = helper.make_graph([made], "test", inputs, [helper.make_tensor_value_info("y", 1, x.shape)])
    wide = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    assert_near(found, ReferenceEvaluator(wide).run(None, feeds)[0])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("of_cos", [(5, 16), (2, 1, 5, 16), (1, 1, 5, 1)])
@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 1, 2, 3)])
def test_rotation_that_is_written_as_products(order, of_cos, interleaved, dtype):
    x, cos, sin = random((2, 5, 3, 16), dtype), random(of_cos, dtype), random((5, 16), dtype, seed=1)
    x = x if order[1] == 2 else x.transpose(0, 2, 1, 3).copy()
    bounds = [(0, 16, 2), (1, 16, 2)] if interleaved else [(0, 8, 1), (8, 16, 1)]
    constants = {"last": np.array([3]), "behind": np.array([-1])}
    nodes = [helper.make_node("Transpose", ["x"], ["z"], perm=order)]
    for name, bound in zip("ab", bounds, strict=True):
        numbers = [f"{name}{index}" for index in range(3)]
        constants |= {each: np.array([value]) for each, value in zip(numbers, bound, strict=True)}
        nodes.append(helper.make_node("Slice", ["z", *numbers[:2], "last", numbers[2]], [name]))
    nodes.append(helper.make_node("Neg", ["b"], ["n"]))
    if interleaved:
        nodes += [helper.make_node("Unsqueeze", [each, "behind"], [f"{each}u"]) for each in "na"]
        nodes += [
            helper.make_node("Concat", ["nu", "au"], ["w"], axis=-1),
            helper.make_node("Shape", ["w"], ["i"], end=3),
            helper.make_node("Concat", ["i", "behind"], ["j"], axis=0),
            helper.make_node("Reshape", ["w", "j"], ["t"]),
        ]
    else:
        nodes.append(helper.make_node("Concat", ["n", "a"], ["t"], axis=-1))
    nodes += [
        helper.make_node("Mul", ["z", "c"], ["p"]),
        helper.make_node("Mul", ["t", "s"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    feeds = {"x": x, "c": cos, "s": sin}
    inputs = {name: (KINDS[dtype], each.shape) for name, each in feeds.items()}
    executable = native(model(nodes, inputs, ["y"], constants))
    z = x.transpose(order)
    turned = np.empty_like(z)
    (a, b) = (np.s_[..., slice(*bound)] for bound in bounds)
    turned[a], turned[b] = -z[b], z[a]
    assert_near(executable.run(feeds)["y"], z * cos + turned * sin)
    assert sum(len(segment.launches) for segment in executable.program(feeds)) <= 3


EQUATIONS = [
    ("ij,jk->ik", (5, 7), (7, 40)),
    ("bij,bjk->bik", (3, 5, 7), (3, 7, 9)),
    ("bhid,bhjd->bhij", (2, 3, 5, 8), (2, 3, 7, 8)),
    ("bihd,bjhd->bhij", (2, 5, 3, 8), (2, 7, 3, 8)),
    ("bhij,bjhd->bihd", (2, 3, 5, 7), (2, 7, 3, 8)),
    ("...ij,...jk->...ik", (2, 1, 5, 7), (3, 7, 9)),
    ("...ij,jk", (2, 5, 7), (7, 9)),
    ("ij,ij->", (5, 7), (5, 7)),
    ("i,j->ij", (5,), (7,)),
    ("i,i", (5,), (5,)),
    ("ii->i", (5, 5)),
    ("bii->b", (3, 5, 5)),
    ("...ii->...i", (3, 5, 5)),
    ("ijk->kij", (3, 4, 5)),
    ("ij->", (3, 4)),
    ("ba", (3, 4)),
    ("ij,jk,kl->il", (3, 4), (4, 5), (5, 6)),
    ("ij,ik,il->jkl", (9, 4), (9, 5), (9, 6)),
    ("ijk,jil->kl", (3, 4, 5), (4, 3, 2)),
    ("bnij,bnj->bin", (2, 3, 4, 5), (2, 3, 5)),
    ("ij,kj->", (3, 4), (5, 4)),
    ("bi,bi->bi", (3, 4), (1, 4)),
]


@pytest.mark.parametrize(("equation", "shapes"), [(each[0], each[1:]) for each in EQUATIONS], ids=str)
def test_einsum(equation, shapes):
    feeds = {f"x{index}": random(shape, seed=index) for index, shape in enumerate(shapes)}
    found, _ = run([helper.make_node("Einsum", list(feeds), ["y"], equation=equation)], feeds)
    assert_near(found, np.einsum(equation, *(each.astype("f8") for each in feeds.values())))


def test_equations_that_do_not_fit_are_refused():
    for equation, *shapes in (
        ("ij,jk->ik", (5, 7), (8, 9)),
        ("ij->ik", (5, 7)),
        ("ijk->i", (5, 7)),
        ("ij->ii", (5, 7)),
        ("ii->i", (5, 7)),
        ("ij,jk->ik", (5, 7)),
        ("i1->i", (5, 7)),
    ):
        feeds = {f"x{index}": random(shape) for index, shape in enumerate(shapes)}
        with pytest.raises(InputError):
            run([helper.make_node("Einsum", list(feeds), ["y"], equation=equation)], feeds)
