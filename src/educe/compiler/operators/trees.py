"""Ensembles of decision trees: `TreeEnsembleClassifier`, `TreeEnsembleRegressor`, `TreeEnsemble`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from educe.compiler.emit import F32, F64, KINDS
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.trees import block_rows
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.forest import EQ, GT, GTE, LEQ, LT, MEMBER, NEQ, Branch, Forest, branch
from educe.compiler.operators.scores import classified, transformed
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_MODES = {
    "BRANCH_LEQ": LEQ,
    "BRANCH_LT": LT,
    "BRANCH_GTE": GTE,
    "BRANCH_GT": GT,
    "BRANCH_EQ": EQ,
    "BRANCH_NEQ": NEQ,
    "BRANCH_MEMBER": MEMBER,
}
_AGGREGATES = {"SUM": "add", "AVERAGE": "add", "MIN": "min", "MAX": "max"}
_NAMED = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")

# One test of a node for one row, and one step of a path, in nanoseconds on a core.
_TEST_NS = {"u8": 0.014, "u16": 0.028}
_STEP_NS = 0.9
_MAX_GROUP_VECTORS = 4


@operator("TreeEnsembleRegressor", domain="ai.onnx.ml")
def regressor(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The aggregated weights of the leaves that each row reaches, one for each target."""
    targets = int(call.get("n_targets", 1))
    raw = _aggregated(low, call, x, lambda dtype: _flat_forest(call, "target", targets, dtype))
    raw = _with_base(low, call, raw)
    return transformed(low, raw, call.get("post_transform", "NONE"))


@operator("TreeEnsembleClassifier", domain="ai.onnx.ml")
def classifier(low: Lowering, call: Call, x: Tensor) -> list[Tensor]:
    """The label and the scores of each row, by the weights of the leaves that it reaches."""
    labels = call.get("classlabels_int64s")
    if labels is None or len(labels) < 2:
        raise NotCompiled
    names = {int(each) for each in call.get("class_ids", ())}
    transform = call.get("post_transform", "NONE")
    base = _given(call, "base_values")
    is_pair = len(names) == 1
    if is_pair and (len(labels) != 2 or names != {0} or (base is not None and len(base) > 1)):
        raise NotCompiled
    classes = 1 if is_pair else len(labels)
    raw = _aggregated(low, call, x, lambda dtype: _flat_forest(call, "class", classes, dtype))
    raw = _with_base(low, call, raw)
    pair = ("1-p" if transform in ("NONE", "PROBIT") else "-p") if is_pair else ""
    return classified(low, raw, np.array(labels, np.int64), transform, pair)


@operator("TreeEnsemble", domain="ai.onnx.ml")
def ensemble(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The aggregated weights of the leaves that each row reaches, one for each target."""
    raw = _aggregated(low, call, x, lambda dtype: _linked_forest(call, dtype))
    transform = _TRANSFORMS[int(call.get("post_transform", 0))]
    if transform != "NONE" and x.kind is F64:
        raise NotCompiled
    result = raw if transform == "NONE" else transformed(low, raw, transform)
    return result if result.kind is x.kind else low.apply("Cast", result, to=x.kind.name)


# Launches --------------------------------------------------------------------------------------------

_FORESTS: WeakKeyDictionary[Call, dict[Any, Any]] = WeakKeyDictionary()


def _made(call: Call, key: Any, make: Callable[[], Any]) -> Any:
    """Return what `make` makes, once for each node and key."""
    known = _FORESTS.setdefault(call, {})
    if key not in known:
        known[key] = make()
    return known[key]


def _aggregated(low: Lowering, call: Call, x: Tensor, read: Callable[[np.dtype], Forest]) -> Tensor:
    if x.rank not in (1, 2):
        raise ValueError(f"trees take a matrix, not a tensor of {x.rank} dimensions")
    kind = F64 if x.kind is F64 else F32
    if x.kind is not kind:
        x = low.apply("Cast", x, to=kind.name)
    x = low.dense(x)
    if x.rank == 1:
        x = low.reshape(x, (1, x.size))
    forest = _made(call, kind.name, lambda: read(dtype_of(kind)))
    rows, features = x.shape
    if forest.features > features:
        raise ValueError(f"the trees test {forest.features} features, X has {features}")
    out = low.empty(kind, (rows, forest.targets))
    block = 0
    if forest.code is not None:
        block = block_rows(low.target, KINDS[forest.code])
        by_node_ns = forest.nodes * block * _TEST_NS[forest.code]
        by_path_ns = forest.steps * _STEP_NS
        if by_node_ns > by_path_ns * block:
            block = 0
    whole = 0
    if block:
        whole = rows - rows % block
        if (rows - whole) * by_path_ns > by_node_ns:
            whole = rows
        _launch_by_node(low, call, forest, x, out, whole, block)
    _launch_by_path(low, call, forest, x, out, whole)
    return out


def _rows(x: Tensor, first: int, count: int) -> Tensor:
    return x.view((count, x.shape[1]), x.strides, x.offset + first * x.shape[1])


def _launch_by_node(
    low: Lowering, call: Call, forest: Forest, x: Tensor, out: Tensor, rows: int, block: int
) -> None:
    """Launch `trees_by_node` for the first `rows` rows."""
    code = KINDS[forest.code or ""]
    kernel = Kernel.of("trees_by_node", kind=x.kind, code=code, aggregate=forest.aggregate)
    low.expect([kernel])
    if not rows:
        return
    tables = _made(call, (x.kind.name, code.name), forest.by_node)
    low.launch(
        kernel,
        outputs=[_rows(out, 0, rows)],
        inputs=[_rows(x, 0, rows), *(low.constant(each) for each in tables)],
        sizes=[rows, x.shape[1], len(forest.planes), len(forest.trees), forest.targets],
        extent=-(-rows // block),
        flops=rows * forest.nodes * code.size_bytes,
        bytes=rows * (x.shape[1] + forest.targets) * x.kind.size_bytes,
        scratch_bytes=block
        * ((len(forest.planes) + 1) * code.size_bytes + forest.targets * x.kind.size_bytes),
    )


def _launch_by_path(low: Lowering, call: Call, forest: Forest, x: Tensor, out: Tensor, first: int) -> None:
    """Launch `trees_by_path` for the rows from `first` on."""
    rows = x.shape[0] - first
    lanes = low.target.lanes
    vectors = max(1, min(_MAX_GROUP_VECTORS, -(-len(forest.trees) // lanes)))
    together = vectors * lanes
    kernel = Kernel.of(
        "trees_by_path",
        kind=x.kind,
        vectors=vectors,
        equality=any(each.equality for each in forest.branches),
        aggregate=forest.aggregate,
    )
    low.expect([kernel])
    if not rows:
        return
    tables = _made(call, (x.kind.name, together), lambda: forest.by_path(together))
    groups = -(-len(forest.trees) // together)
    low.launch(
        kernel,
        outputs=[_rows(out, first, rows)],
        inputs=[_rows(x, first, rows), *(low.constant(each) for each in tables)],
        sizes=[x.shape[1], groups, forest.targets],
        extent=rows,
        flops=rows * forest.steps,
        bytes=rows * (4 * forest.steps + forest.targets) * x.kind.size_bytes,
        scratch_bytes=4 * groups * together,
    )


def _with_base(low: Lowering, call: Call, raw: Tensor) -> Tensor:
    base = _given(call, "base_values")
    if base is None:
        return raw
    if base.size not in (1, raw.shape[1]):
        raise ValueError(f"{base.size} base values for {raw.shape[1]} targets")
    made = _made(call, ("base", raw.kind.name), lambda: np.array(base, dtype_of(raw.kind)).reshape(1, -1))
    return low.apply("Add", raw, low.constant(made))


# Attributes ------------------------------------------------------------------------------------------


def _given(call: Call, name: str) -> np.ndarray | None:
    """Return a list of numbers that is an attribute, or a tensor in the attribute of the longer name."""
    found = call.get(f"{name}_as_tensor")
    if found is None:
        found = call.get(name)
    return None if found is None or not len(found) else np.asarray(found).ravel()


def _flat_forest(call: Call, of: str, targets: int, dtype: np.dtype) -> Forest:
    """Read the attributes of the older operators: nodes told by tree and number, leaves among them."""
    trees, numbers = list(call.get("nodes_treeids", ())), list(call.get("nodes_nodeids", ()))
    modes = [_text(mode) for mode in call.get("nodes_modes", ())]
    values = _given(call, "nodes_values")
    fields = [
        trees,
        numbers,
        modes,
        list(call.get("nodes_featureids", ())),
        list(call.get("nodes_truenodeids", ())),
        list(call.get("nodes_falsenodeids", ())),
        list(values if values is not None else ()),
        list(call.get("nodes_missing_value_tracks_true") or [0] * len(trees)),
    ]
    if any(len(each) != len(trees) for each in fields):
        raise ValueError("the attributes of a tree ensemble are lists of different lengths")
    leaf_numbers: dict[tuple[int, int], int] = {}
    places: dict[tuple[int, int], int] = {}
    for tree, number, mode in zip(trees, numbers, modes, strict=True):
        key = (tree, number)
        if key in places:
            raise ValueError(f"tree {tree} has two nodes {number}")
        if mode == "LEAF":
            places[key] = ~len(leaf_numbers)
            leaf_numbers[key] = len(leaf_numbers)
        else:
            places[key] = len(places) - len(leaf_numbers)
    branches = []
    for tree, _, mode, feature, true, false, value, tracks in zip(*fields, strict=True):
        if mode == "LEAF":
            continue
        if mode not in _MODES or mode == "BRANCH_MEMBER":
            raise ValueError(f"there is no mode {mode!r} of a node")
        if (tree, true) not in places or (tree, false) not in places:
            raise ValueError(f"a node of tree {tree} has a child that is not there")
        children = places[tree, true], places[tree, false]
        branches.append(branch(_MODES[mode], int(feature), float(value), children, bool(tracks), dtype.type))
    roots: dict[int, int] = {}
    for tree, number in zip(trees, numbers, strict=True):
        roots.setdefault(tree, places[tree, number])
    name = _text(call.get("aggregate_function", "SUM"))
    share = len(roots) if name == "AVERAGE" else 1
    leaves = _leaf_weights(call, of, leaf_numbers, share)
    return Forest(
        branches, [roots[tree] for tree in sorted(roots)], leaves, targets, _AGGREGATES[name], dtype
    )


def _leaf_weights(
    call: Call, of: str, leaf_numbers: dict[tuple[int, int], int], share: int
) -> list[list[tuple[int, float]]]:
    weights = _given(call, f"{of}_weights")
    lists = [list(call.get(f"{of}_{field}", ())) for field in ("treeids", "nodeids", "ids")]
    rows = list(zip(*lists, weights if weights is not None else (), strict=True))
    leaves: list[list[tuple[int, float]]] = [[] for _ in leaf_numbers]
    for tree, number, target, weight in rows:
        if (tree, number) not in leaf_numbers:
            raise ValueError(f"node {number} of tree {tree} has weights and is no leaf")
        leaves[leaf_numbers[tree, number]].append((int(target), float(weight) / share))
    return leaves


def _linked_forest(call: Call, dtype: np.dtype) -> Forest:
    """Read the attributes of operator set 5: nodes told by their place, leaves apart."""
    names = ("truenodeids", "falsenodeids", "trueleafs", "falseleafs", "featureids", "modes", "splits")
    lists = [np.asarray(call.get(f"nodes_{name}", ())).ravel().tolist() for name in names]
    tracks = call.get("nodes_missing_value_tracks_true") or [0] * len(lists[0])
    if any(len(each) != len(lists[0]) for each in (*lists, tracks)):
        raise ValueError("the attributes of a tree ensemble are lists of different lengths")
    sets = _members(call, lists[5])
    branches = []
    for true, false, true_leaf, false_leaf, feature, mode, value, track in zip(*lists, tracks, strict=True):
        if min(true, false) < 0 or not LEQ <= mode <= MEMBER:
            raise ValueError("a node of a tree has a negative child or an unknown mode")
        children = (~true if true_leaf else true, ~false if false_leaf else false)
        branches.append(_branch(mode, feature, value, children, bool(track), dtype, sets))
    roots = []
    for root in call.get("tree_roots", ()):
        if not 0 <= root < len(branches):
            raise ValueError(f"the root {root} is not one of {len(branches)} nodes")
        only = lists[2][root] and lists[3][root] and lists[0][root] == lists[1][root]
        roots.append(~lists[0][root] if only else root)
    name = _NAMED[int(call.get("aggregate_function", 1))]
    share = len(roots) if name == "AVERAGE" else 1
    weights = np.asarray(call.get("leaf_weights", ())).ravel().tolist()
    pairs = zip(call.get("leaf_targetids", ()), weights, strict=True)
    leaves = [[(int(target), float(weight) / share)] for target, weight in pairs]
    return Forest(branches, roots, leaves, int(call.get("n_targets", 1)), _AGGREGATES[name], dtype)


def _branch(
    mode: int,
    feature: int,
    value: float,
    children: tuple[int, int],
    tracks: bool,
    dtype: np.dtype,
    sets: list[list[float]],
) -> Branch:
    if mode != MEMBER:
        return branch(mode, feature, value, children, tracks, dtype.type)
    members = [float(dtype.type(each)) for each in sets.pop(0)]
    if not members:
        raise NotCompiled
    return Branch(feature, members[0], *children, tracks, True, tuple(members[1:]))


def _members(call: Call, modes: Sequence[int]) -> list[list[float]]:
    """Return the values of each node that tests for membership of a set; NaN ends each."""
    sets: list[list[float]] = [[]]
    for value in np.asarray(call.get("membership_values", ())).ravel().tolist():
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(value)
    if len(sets) - 1 != sum(mode == MEMBER for mode in modes):
        raise ValueError("not every node that tests for membership has its values")
    return sets


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
