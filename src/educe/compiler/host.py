"""Host calls: operators that no kernel covers, by the ONNX project's own evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from educe.machine import ForkedLock

# The evaluator's nodes keep what they computed, and change the process's warning filters while they run.
_ONE_AT_A_TIME = ForkedLock()


class HostCall:
    """One node, run by `onnx.reference`: slow, and right.

    Args:
        node: The node, without subgraphs.
        opsets: The operator sets of its graph.
    """

    def __init__(self, node: ir.Node, opsets: dict[str, int]) -> None:
        from onnx.reference import ReferenceEvaluator

        proto = ir.serde.serialize_node(node)
        self._names = [name for name in dict.fromkeys(proto.input) if name]
        self._positions = [list(proto.input).index(name) for name in self._names]
        outputs = [name for name in proto.output if name]
        self._outputs = list(proto.output)
        graph = onnx.helper.make_graph(
            [proto],
            "host",
            [onnx.helper.make_empty_tensor_value_info(name) for name in self._names],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        )
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
        with _ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._evaluator = ReferenceEvaluator(model)

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the node's outputs, None for those that nobody wants."""
        feeds = {name: inputs[position] for name, position in zip(self._names, self._positions, strict=True)}
        with _ONE_AT_A_TIME, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = iter(self._evaluator.run(None, feeds))
        return [_array(next(found)) if name else None for name in self._outputs]


def _array(value: Any) -> Any:
    """Return `value` as the compiler keeps it: text as `str` objects, lists for sequences."""
    if isinstance(value, list):
        return [_array(item) for item in value]
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array
