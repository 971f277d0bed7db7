"""Ensembles of trees: compiled code against a plain walk in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.random import Generator

from educe import engines, formats
from educe.errors import EduceError

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
TESTS = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)


class Ensemble:
    """Random trees, with the attributes that ONNX gives them."""

    def __init__(
        self,
        rng: Generator,
        trees: int,
        leaves: int,
        features: int,
        targets: int = 1,
        modes: int = 1,
        distinct: int = 200,
        every_target: bool = False,
    ) -> None:
        self.features, self.targets, self.num_trees = features, targets, trees
        self.nodes: list[tuple[int, int, str, int, int, int, float, int]] = []
        self.weights: list[tuple[int, int, int, float]] = []
        cuts = np.round(rng.normal(size=distinct), 2).astype(np.float32)
        for tree in range(trees):
            self._grow(rng, tree, leaves, cuts, modes, every_target)

    def _grow(
        self, rng: Generator, tree: int, leaves: int, cuts: np.ndarray, modes: int, every_target: bool
    ) -> None:
        children: dict[int, tuple[int, int]] = {}
        open_leaves, count = [0], 1
        while len(open_leaves) < leaves:
            node = open_leaves.pop(int(rng.integers(len(open_leaves))))
            children[node] = (count, count + 1)
            open_leaves += [count, count + 1]
            count += 2
        for node in range(count):
            if node not in children:
                self.nodes.append((tree, node, "LEAF", 0, 0, 0, 0.0, 0))
                for target in range(self.targets) if every_target else [tree % self.targets]:
                    self.weights.append((tree, node, target, float(np.float32(rng.normal()))))
                continue
            mode = MODES[int(rng.integers(modes))]
            feature, cut = int(rng.integers(self.features)), float(rng.choice(cuts))
            self.nodes.append((tree, node, mode, feature, *children[node], cut, int(rng.integers(2))))

    def attributes(self, of: str) -> dict[str, Any]:
        """Return the attributes of the older operators."""
        names = ("treeids", "nodeids", "modes", "featureids", "truenodeids", "falsenodeids", "values")
        columns = list(zip(*self.nodes, strict=True))
        found: dict[str, Any] = {
            f"nodes_{name}": list(column)
            for name, column in zip((*names, "missing_value_tracks_true"), columns, strict=True)
        }
        for name, column in zip(
            ("treeids", "nodeids", "ids", "weights"), zip(*self.weights, strict=True), strict=True
        ):
            found[f"{of}_{name}"] = list(column)
        return found

    def raw(self, x: np.ndarray) -> np.ndarray:
        """Return the sums of weights in f64, by a walk of all rows through each tree."""
        places = {(node[0], node[1]): index for index, node in enumerate(self.nodes)}
        weights: dict[tuple[int, int], np.ndarray] = {}
        for tree, node, target, weight in self.weights:
            weights.setdefault((tree, node), np.zeros(self.targets))[target] += weight
        result = np.zeros((len(x), self.targets))
        for tree in range(self.num_trees):
            self._add(x, tree, places, weights, result)
        return result

    def _add(self, x: np.ndarray, tree: int, places: Any, weights: Any, result: np.ndarray) -> None:
        waiting = [(0, np.arange(len(x)))]
        while waiting:
            number, rows = waiting.pop()
            _, _, mode, feature, true, false, value, tracks = self.nodes[places[tree, number]]
            if mode == "LEAF":
                result[rows] += weights[tree, number]
                continue
            column = x[rows, feature]
            goes = TESTS[MODES.index(mode)](column, np.float32(value)) | (np.isnan(column) & bool(tracks))
            waiting += [(true, rows[goes]), (false, rows[~goes])]


def compiled(operator: str, outputs: int, **attributes: Any) -> Any:
    """Return an executable of one node of ai.onnx.ml."""
    return engines.compile(formats.load(model(operator, outputs, **attributes)), "native")


def model(operator: str, outputs: int, dtype: int = onnx.TensorProto.FLOAT, **attributes: Any) -> bytes:
    """Return a model of one node of ai.onnx.ml that takes a matrix."""
    names = ["y", "z"][:outputs]
    node = onnx.helper.make_node(operator, ["x"], names, domain="ai.onnx.ml", **attributes)
    kinds = [onnx.TensorProto.INT64, onnx.TensorProto.FLOAT] if outputs == 2 else [onnx.TensorProto.FLOAT]
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", dtype, ["n", None])],
        [onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in zip(names, kinds, strict=True)],
    )
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def inputs(rng: Generator, rows: int, features: int) -> np.ndarray:
    """Return features of which many lie on thresholds, and some are not numbers or infinite."""
    x = np.round(rng.normal(size=(rows, features)), 2).astype(np.float32)
    x[rng.random(x.shape) < 0.03] = np.nan
    x[rng.random(x.shape) < 0.02] = np.inf
    x[rng.random(x.shape) < 0.02] = -np.inf
    return x


def on_host(executable: Any, x: np.ndarray) -> bool:
    """Say whether some node ran on the host."""
    return any(s.step is not None and s.step.call is not None for s in executable.program({"x": x}))


CASES: dict[str, dict[str, Any]] = {
    "small": {"trees": 3, "leaves": 5, "features": 4},
    "one leaf": {"trees": 2, "leaves": 1, "features": 3},
    "boosted": {"trees": 70, "leaves": 31, "features": 9, "modes": 4},
    "wide codes": {"trees": 40, "leaves": 40, "features": 2, "modes": 4, "distinct": 3000},
    "many leaves": {"trees": 20, "leaves": 300, "features": 7, "modes": 4},
    "deep": {"trees": 5, "leaves": 3000, "features": 7, "modes": 4},
    "equality": {"trees": 20, "leaves": 31, "features": 5, "modes": 6, "distinct": 20},
    "targets": {"trees": 30, "leaves": 16, "features": 6, "targets": 3, "every_target": True},
    "target of a tree": {"trees": 30, "leaves": 16, "features": 6, "targets": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_regressor(case: str) -> None:
    rng = np.random.default_rng(1)
    ensemble = Ensemble(rng, **CASES[case])
    run = compiled("TreeEnsembleRegressor", 1, n_targets=ensemble.targets, **ensemble.attributes("target"))
    x = inputs(rng, 700, ensemble.features)
    expected = ensemble.raw(x)
    found = run.run({"x": x})["y"]
    assert not on_host(run, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for rows in (1, 3, 255, 300):
        part = run.run({"x": x[:rows]})["y"]
        np.testing.assert_array_equal(part, found[:rows])


@pytest.mark.parametrize("aggregate", ["AVERAGE", "MIN", "MAX"])
def test_aggregates(aggregate: str) -> None:
    rng = np.random.default_rng(2)
    ensemble = Ensemble(rng, 12, 9, 5)
    given = ensemble.attributes("target")
    run = compiled(
        "TreeEnsembleRegressor", 1, n_targets=1, aggregate_function=aggregate, base_values=[0.5], **given
    )
    x = inputs(rng, 400, 5)
    each = np.concatenate([_only(ensemble, tree).raw(x) for tree in range(12)], 1)
    expected = {"AVERAGE": each.mean(1), "MIN": each.min(1), "MAX": each.max(1)}[aggregate] + 0.5
    np.testing.assert_allclose(run.run({"x": x})["y"][:, 0], expected, rtol=1e-5, atol=1e-5)


def _only(ensemble: Ensemble, tree: int) -> Ensemble:
    one = Ensemble.__new__(Ensemble)
    one.features, one.targets, one.num_trees = ensemble.features, 1, 1
    one.nodes = [(0, *node[1:]) for node in ensemble.nodes if node[0] == tree]
    one.weights = [(0, *weight[1:]) for weight in ensemble.weights if weight[0] == tree]
    return one


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("classes", [1, 3])
def test_classifier(classes: int, transform: str) -> None:
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(3)
    ensemble = Ensemble(rng, 9, 8, 5, targets=classes, modes=4)
    labels = [7, -3] if classes == 1 else [4, 9, 2]
    given = ensemble.attributes("class")
    file = model("TreeEnsembleClassifier", 2, post_transform=transform, classlabels_int64s=labels, **given)
    run = engines.compile(formats.load(file), "native")
    x = inputs(rng, 37, 5)
    assert not on_host(run, x)
    with np.errstate(invalid="ignore"):
        label, scores = ReferenceEvaluator(onnx.load_from_string(file)).run(None, {"x": x})
    found = run.run({"x": x})
    np.testing.assert_allclose(found["z"], scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["y"], label)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32])
def test_other_inputs(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    ensemble = Ensemble(rng, 20, 12, 5)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    run = compiled("TreeEnsembleRegressor", 1, dtype=kind, n_targets=1, **ensemble.attributes("target"))
    x = (rng.normal(size=(50, 5)) * 3).astype(dtype)
    np.testing.assert_allclose(run.run({"x": x})["y"], ensemble.raw(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_truenodeids": [0, 0, 0]}, "two ways"),
        ({"nodes_truenodeids": [9, 0, 0]}, "not there"),
        ({"nodes_featureids": [5, 0, 0]}, "features"),
        ({"target_ids": [0, 4]}, "target"),
        ({"nodes_values": [1.0]}, "different lengths"),
    ],
)
def test_hostile_trees_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_featureids": [0, 0, 0],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, 2.0],
    }
    run = compiled("TreeEnsembleRegressor", 1, n_targets=1, **(given | change))
    with pytest.raises(EduceError, match=message):
        run.run({"x": np.zeros((2, 2), np.float32)})


def test_no_rows() -> None:
    ensemble = Ensemble(np.random.default_rng(5), 3, 4, 2)
    run = compiled("TreeEnsembleRegressor", 1, n_targets=1, **ensemble.attributes("target"))
    assert run.run({"x": np.zeros((0, 2), np.float32)})["y"].shape == (0, 1)
