"""The engine `onnxruntime`: ONNX Runtime on the CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from educe.engines.base import Engine, Executable, Launch, Options, Support, Value
from educe.engines.onnxruntime_errors import compile_error, run_error
from educe.engines.onnxruntime_operators import problems
from educe.errors import MissingLibraryError, UnsupportedModelError
from educe.model import Model, TensorType, ValueType
from educe.model.walk import all_nodes
from educe.settings import resolve_threads

SHARED_WEIGHT_BYTES = 64 * 1024
"""Weights from this size on are handed over by address; smaller ones, such as shapes, stay in the message."""

# The newest that every version of ONNX Runtime since 1.18 takes. Later ones add fields that no run needs.
_IR_VERSION = 10
_PACKED_BITS = 8
_FATAL = 4


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime's CPU provider; source: onnxruntime.ai."""

    name: ClassVar[str] = "onnxruntime"

    def version(self) -> str | None:
        """Return the library's version, or None if it is not installed."""
        try:
            return str(_library().__version__)
        except MissingLibraryError:
            return None

    def devices(self) -> list[str]:
        """Return ``CPU``, the only provider that this engine uses."""
        return ["CPU"] if self.version() else []

    def supports(self, model: Model) -> Support:
        """Say which nodes have no operator or no CPU kernel in this version of ONNX Runtime.

        A node is refused if its domain or operator is unknown, if its operator set is newer than the newest
        that the library declares an operator of, or if its operator has neither a kernel for that set nor a
        definition by other operators. Element types are judged by `compile`.
        """
        _library()
        return Support(tuple(problems(model.graph)))

    def compile(self, model: Model, options: Options) -> Executable:
        """Compile `model`; see `Engine.compile`."""
        library = _library()
        _refuse_mixtures(model)
        message, weights = _message(model.graph, library)
        settings = _settings(model, options, library)
        settings.add_external_initializers(list(weights), list(weights.values()))
        try:
            session = library.InferenceSession(message, settings, providers=["CPUExecutionProvider"])
        except Exception as fault:
            raise compile_error(fault, model) from None
        return Executable(self.name, model, _launch(session, model, library))


def _library() -> ModuleType:
    # Read by the library while it is imported.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError:
        raise MissingLibraryError(
            "onnxruntime", extra="onnxruntime", purpose="the engine onnxruntime"
        ) from None
    onnxruntime.disable_telemetry_events()
    return onnxruntime  # type: ignore[no-any-return]


def _settings(model: Model, options: Options, library: ModuleType) -> Any:
    level = library.GraphOptimizationLevel
    levels = {
        "none": level.ORT_DISABLE_ALL,
        "basic": level.ORT_ENABLE_BASIC,
        "extended": level.ORT_ENABLE_EXTENDED,
        "all": level.ORT_ENABLE_ALL,
    }
    settings = library.SessionOptions()
    settings.intra_op_num_threads = resolve_threads(options.threads)
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = levels[options.graph_optimization]
    settings.enable_cpu_mem_arena = options.memory_arena
    # A plan of the memory is kept for every combination of input sizes that was ever seen.
    settings.enable_mem_pattern = options.memory_arena and _sizes_are_fixed(model)
    # Every error is raised, so that the library need not print it as well.
    settings.log_severity_level = _FATAL
    # Workers spin between the operators of a run, and sleep as soon as it ends.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if _only_weights_are_quantized(model.graph):
        # Without the rewriting of quantised operators, the weights are dequantised once, while compiling.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def _sizes_are_fixed(model: Model) -> bool:
    inputs = model.signature.inputs.values()
    return all(
        isinstance(value, TensorType)
        and value.shape is not None
        and all(isinstance(dim, int) for dim in value.shape)
        for value in inputs
    )


def _only_weights_are_quantized(graph: ir.Model) -> bool:
    """Say whether no integer kernel could take the place of a float one.

    One can where activations are quantised, and where weights are quantised in blocks (4-bit MatMul).
    """
    return not any(
        node.op_type == "QuantizeLinear"
        or (node.op_type == "DequantizeLinear" and "block_size" in node.attributes)
        for node in all_nodes(graph)
    )


def _message(graph: ir.Model, library: ModuleType) -> tuple[bytes, dict[str, Any]]:
    """Return the graph as bytes without its large weights, and those, which share memory with the model."""
    graph = graph.clone()
    graph.ir_version = min(graph.ir_version, _IR_VERSION)
    weights = {}
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not _can_be_shared(tensor.dtype) or tensor.nbytes < SHARED_WEIGHT_BYTES:
            continue
        array = np.ascontiguousarray(tensor.numpy())
        weights[name] = library.OrtValue.ortvalue_from_numpy_with_onnx_type(array, tensor.dtype.value)
        value.const_value = ir.ExternalTensor(
            "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(array.shape), name=name
        )
    return ir.serde.serialize_model(graph).SerializeToString(), weights


def _can_be_shared(dtype: ir.DataType) -> bool:
    return dtype != ir.DataType.STRING and dtype.bitwidth >= _PACKED_BITS


def _launch(session: Any, model: Model, library: ModuleType) -> Launch:
    names = list(model.signature.outputs)
    narrow = _narrow(model.signature.inputs)
    if _narrow(model.signature.outputs):
        return _launch_of_values(session, names, library)

    def launch(feeds: dict[str, Value]) -> Sequence[Value]:
        try:
            for name in narrow:
                feeds[name] = _to_value(feeds[name], library)
            return session.run(names, feeds)  # type: ignore[no-any-return]
        except Exception as fault:
            raise run_error(fault) from None

    return launch


def _launch_of_values(session: Any, names: list[str], library: ModuleType) -> Launch:
    """Return the slower way, by which the library also returns element types that NumPy lacks."""

    def launch(feeds: dict[str, Value]) -> Sequence[Value]:
        try:
            values = {name: _to_value(array, library) for name, array in feeds.items()}
            return [_from_value(value) for value in session.run_with_ort_values(names, values)]
        except Exception as fault:
            raise run_error(fault) from None

    return launch


def _narrow(values: Mapping[str, ValueType]) -> tuple[str, ...]:
    """Return the names of the tensors whose element type is not NumPy's own, such as ``bf16``."""
    return tuple(
        name
        for name, value in values.items()
        if isinstance(value, TensorType) and value.numpy_dtype.isbuiltin != 1
    )


def _refuse_mixtures(model: Model) -> None:
    """Refuse what the library can neither take nor return beside element types that NumPy lacks."""
    inputs, outputs = model.signature.inputs, model.signature.outputs
    beside = {**inputs, **outputs} if _narrow(outputs) else {}
    for name, value in beside.items():
        if not isinstance(value, TensorType) or (value.dtype == "str" and name in inputs):
            narrow = _narrow(outputs)[0]
            raise UnsupportedModelError(
                f"ONNX Runtime has no {name!r} ({value}) beside the output {narrow!r} ({outputs[narrow]})",
                path=model.path,
                remedy="use the engine reference, or cast the output to f32 in the model",
            )


def _to_value(array: np.ndarray, library: ModuleType) -> Any:
    if array.dtype.isbuiltin == 1:
        return library.OrtValue.ortvalue_from_numpy(array)
    tensor = ir.Tensor(array)
    value = library.OrtValue.ortvalue_from_shape_and_type(list(array.shape), tensor.dtype.value)
    content = tensor.tobytes()
    ctypes.memmove(value.data_ptr(), content, len(content))
    return value


def _from_value(value: Any) -> Value:
    dtype = ir.DataType(value.element_type())
    if dtype == ir.DataType.STRING or dtype.numpy().isbuiltin == 1:
        return value.numpy()
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    shape = ir.Shape(value.shape())
    if dtype.bitwidth < _PACKED_BITS:
        return np.array(ir.PackedTensor(np.frombuffer(content, np.uint8), dtype, shape=shape).numpy())
    return np.frombuffer(bytearray(content), dtype.numpy()).reshape(value.shape())
