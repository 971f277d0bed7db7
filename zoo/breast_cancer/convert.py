"""Convert a LightGBM classifier of breast tumours to ONNX.

The original is `testdata/lg_dart_breast_cancer.model` of github.com/dmitryikh/leaves, a text file. Its
thresholds are float64 and ONNX has float32: each is rounded down, so that a float32 value is at most the
threshold exactly when it is at most the rounded one.

    pip install onnx
    python convert.py lg_dart_breast_cancer.model model.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8
COLUMNS = 30


def round_down(value: float) -> float:
    """Return the largest float32 that is not above `value`."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))


def fields(block: str) -> dict[str, list[str]]:
    """Return the `name=values` lines of one tree."""
    pairs = (line.split("=", 1) for line in block.splitlines() if "=" in line)
    return {name: values.split() for name, values in pairs}


def convert(text: str) -> onnx.ModelProto:
    """Return the ONNX form of a LightGBM model: a sum of trees and a sigmoid."""
    nodes: dict[str, Any] = {
        name: []
        for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    targets: dict[str, Any] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def add(**values: int | float | str) -> None:
        for name, value in values.items():
            nodes[name].append(value)

    header, *blocks = text.split("\nend of trees")[0].split("\nTree=")
    if "objective=binary sigmoid:1\n" not in header:
        raise SystemExit("only a binary objective with sigmoid:1 is known")
    for tree, block in enumerate(blocks):
        values = fields(block)
        splits = len(values["split_feature"])
        if values["num_cat"] != ["0"]:
            raise SystemExit("only numeric splits are known")

        # LightGBM counts splits from 0 and leaves from -1 downwards; here the leaves come after the splits.
        def number(child: str, splits: int = splits) -> int:
            return int(child) if int(child) >= 0 else splits - int(child) - 1

        for split in range(splits):
            add(
                treeids=tree,
                nodeids=split,
                featureids=int(values["split_feature"][split]),
                values=round_down(float(values["threshold"][split])),
                modes="BRANCH_LEQ",
                truenodeids=number(values["left_child"][split]),
                falsenodeids=number(values["right_child"][split]),
            )
        for leaf, weight in enumerate(values["leaf_value"]):
            node = splits + leaf
            add(
                treeids=tree,
                nodeids=node,
                featureids=0,
                values=0.0,
                modes="LEAF",
                truenodeids=0,
                falsenodeids=0,
            )
            for name, value in {"treeids": tree, "nodeids": node, "ids": 0, "weights": float(weight)}.items():
                targets[name].append(value)
    graph_nodes = [
        helper.make_node(
            "TreeEnsembleRegressor",
            ["features"],
            ["score"],
            domain="ai.onnx.ml",
            n_targets=1,
            **{f"nodes_{name}": values for name, values in nodes.items()},
            **{f"target_{name}": values for name, values in targets.items()},
        ),
        helper.make_node("Sigmoid", ["score"], ["benign"]),
        helper.make_node("Sub", ["one", "benign"], ["malignant"]),
        helper.make_node("Concat", ["malignant", "benign"], ["probabilities"], axis=1),
    ]
    result = helper.make_model(
        helper.make_graph(
            graph_nodes,
            "breast_cancer",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", COLUMNS])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2])],
            [numpy_helper.from_array(np.asarray(1, np.float32), "one")],
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
        producer_name="educe zoo",
    )
    onnx.checker.check_model(result, full_check=True)
    return result


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(convert(Path(sys.argv[1]).read_text()).SerializeToString())
