"""The engine `reference`: the ONNX project's own evaluator, written in NumPy, which judges the others."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun, RuntimeContextError

from educe.engines.base import Engine, Executable, Options, Support, Value, owned
from educe.errors import EngineError, Problem
from educe.machine import ForkedLock
from educe.model import Model
from educe.model.walk import STANDARD_DOMAINS, graph_nodes, node_label, versioned_operator

# The evaluator's nodes keep what they computed, and change the process's warning filters while they run.
_ONE_AT_A_TIME = ForkedLock()


class GlobalMaxPool(OpRun):
    """Takes the place of the evaluator's own, which also reduces the channels of tensors of rank 3."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class ReferenceEngine(Engine):
    """`onnx.reference.ReferenceEvaluator`: slow, and right; source: onnx.ai.

    One run is made at a time, whatever the number of threads; no option changes anything.
    """

    name: ClassVar[str] = "reference"

    def version(self) -> str | None:
        """Return the version of the package `onnx`."""
        return str(onnx.__version__)

    def devices(self) -> list[str]:
        """Return ``CPU``."""
        return ["CPU"]

    def supports(self, model: Model) -> Support:
        """Say which nodes the evaluator has no implementation of, for the operator sets they come from."""
        return Support(tuple(problems(model.graph)))

    def compile(self, model: Model, options: Options) -> Executable:
        """Compile `model`; see `Engine.compile`."""
        del options
        proto, weights = _message(model.graph)
        try:
            evaluator = ReferenceEvaluator(proto, new_ops=[GlobalMaxPool])
        except Exception as fault:
            raise EngineError(
                f"the reference evaluator refuses the model: {fault}", path=model.path
            ) from None
        return Executable(self.name, model, _Launch(evaluator, weights, list(model.signature.outputs)))


class _Launch:
    def __init__(
        self, evaluator: ReferenceEvaluator, weights: dict[str, np.ndarray], outputs: list[str]
    ) -> None:
        self._evaluator = evaluator
        self._weights = weights
        self._outputs = outputs

    def __call__(self, feeds: dict[str, Value]) -> Sequence[Value]:
        guarded = {name: _read_only(value) for name, value in feeds.items()}
        with _ONE_AT_A_TIME, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                outputs = self._evaluator.run(self._outputs, {**self._weights, **guarded})
            except Exception as fault:
                raise _run_error(fault) from None
        return [owned(output) for output in outputs]


def _message(graph: ir.Model) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the graph without its weights, and those, read-only: the evaluator takes them as feeds."""
    graph = graph.clone()
    weights = {}
    for name, value in list(graph.graph.initializers.items()):
        if value.const_value is not None:
            weights[name] = _read_only(_array(value.const_value))
            del graph.graph.initializers[name]
    return ir.serde.serialize_model(graph), weights


def _array(tensor: ir.TensorProtocol) -> np.ndarray:
    array = tensor.numpy()
    if tensor.dtype != ir.DataType.STRING:
        return array
    words = [word.decode(errors="replace") for word in array.ravel()]
    return np.array(words, object).reshape(array.shape)


def problems(
    graph: ir.Model, is_known: Callable[[str, str, int], bool] = lambda *_: False
) -> Iterator[Problem]:
    """Yield each node that the evaluator cannot run, but for operators that `is_known` names.

    Args:
        graph: The graph, with its functions.
        is_known: Tells of operators by domain, name and operator set.
    """
    reasons: dict[tuple[str, str, int], str | None] = {}
    bodies: list[ir.Graph | ir.Function] = [graph.graph, *graph.functions.values()]
    for body in bodies:
        for node in graph_nodes(body):
            if node.op_identifier() in graph.functions:
                continue
            key = (node.domain, node.op_type, body.opset_imports.get(node.domain, 1))
            if key not in reasons:
                reasons[key] = None if is_known(*key) else _refusal(*key)
            reason = reasons[key]
            if reason:
                yield Problem(node_label(node), versioned_operator(node, key[2]), reason)


def _refusal(domain: str, name: str, opset: int) -> str | None:
    from onnx.reference import ops
    from onnx.reference.ops import aionnx_preview, aionnx_preview_training, aionnxml

    lacking = f"the reference evaluator has no implementation for operator set {opset}"
    try:
        if domain in STANDARD_DOMAINS:
            ops.load_op("", name, opset, evaluator_cls=ReferenceEvaluator)
        elif domain == "ai.onnx.ml":
            aionnxml.load_op(domain, name, opset)
        elif domain == "ai.onnx.preview":
            aionnx_preview.load_op(domain, name, opset)
        elif domain == "ai.onnx.preview.training":
            aionnx_preview_training.load_op(domain, name, opset)
        else:
            return f"the reference evaluator knows no operators of the domain {domain!r}"
    except RuntimeContextError:
        return None
    except Exception:
        return lacking
    return None


def _read_only(value: Value) -> Value:
    if isinstance(value, list):
        return [_read_only(item) for item in value]
    if not isinstance(value, np.ndarray):
        return value
    # One layout, as the order of a NumPy sum, and so its rounding, depends on the strides.
    view = np.asarray(value, order="C").view()
    view.flags.writeable = False
    return view


def _run_error(fault: Exception) -> EngineError:
    node = _failing_node(fault)
    place = None if node is None else f"node {node.name or node.output[0]!r} ({node.op_type})"
    # The evaluator hides a TypeError behind one that tells of the node's attributes only.
    reason = fault.__cause__ or fault
    return EngineError(f"the reference evaluator failed: {reason}", place=place)


def _failing_node(fault: Exception) -> onnx.NodeProto | None:
    for frame, _ in traceback.walk_tb(fault.__traceback__):
        operator = frame.f_locals.get("self")
        if isinstance(operator, OpRun):
            return operator.onnx_node
    return None
