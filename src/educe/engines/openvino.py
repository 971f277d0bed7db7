"""The engine `openvino`: OpenVINO's CPU plugin."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common

from educe.engines.base import Engine, Executable, Launch, Options, Support, Value
from educe.errors import EduceError, EngineError, MissingLibraryError, Problem, UnsupportedModelError
from educe.model import Model, TensorType, ValueType
from educe.model.walk import STANDARD_DOMAINS, graph_nodes, node_label, versioned_operator
from educe.settings import resolve_threads

_TELEMETRY = "openvino_telemetry"
_BY_BITS = {"bf16": "bf16", "f8e4m3fn": "f8e4m3", "f8e5m2": "f8e5m2", "f8e8m0": "f8e8m0"}
"""The element types that NumPy lacks and whose bits the library takes, with its names for them."""

# Weights from this size on hold no shape or axis that a translation looks at.
_LARGE_BYTES = 4096
# The front end reads no field that came later.
_IR_VERSION = 10
_LACKING = re.compile(r"No conversion rule found for operations: (.*)")
_REFUSED = re.compile(r"Conversion is failed for: (.*)")
_VERSION = re.compile(r"-\d+$")
_SOURCE = re.compile(r"(Exception from|Check '.*?' failed at) \S+:\d+:?\s*", re.DOTALL)


class OpenVinoEngine(Engine):
    """OpenVINO's CPU plugin in f32; source: openvino.ai.

    The library rewrites graphs as it likes: the option `graph_optimization` changes nothing, nor does
    `memory_arena`.
    """

    name: ClassVar[str] = "openvino"

    def version(self) -> str | None:
        """Return the library's version, or None if it is not installed."""
        try:
            return str(_library().__version__).split("-", 1)[0]
        except MissingLibraryError:
            return None

    def devices(self) -> list[str]:
        """Return ``CPU``, the only plugin that this engine uses."""
        return ["CPU"] if self.version() else []

    def supports(self, model: Model) -> Support:
        """Say which nodes the library has no translation of, as it tells of the graph without its weights."""
        problems = tuple(_other_values(model))
        if problems:
            return Support(problems)
        try:
            _core().read_model(_message(model.graph, with_weights=False))
        except RuntimeError as fault:
            return Support(tuple(_problems(model, str(fault), _LACKING)))
        return Support()

    def compile(self, model: Model, options: Options) -> Executable:
        """Compile `model`; see `Engine.compile`."""
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": resolve_threads(options.threads),
            "INFERENCE_PRECISION_HINT": "f32",
            # Activations beside weights of 8 bits stay what they are.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        try:
            graph = _core().read_model(_message(model.graph))
            compiled = _core().compile_model(graph, "CPU", settings)
        except RuntimeError as fault:
            raise _compile_error(model, str(fault)) from None
        return Executable(self.name, model, _launch(compiled, model))


@cache
def _library() -> ModuleType:
    """Import the library without the package by which it reports that it was imported."""
    absent = object()
    reporting = sys.modules.get(_TELEMETRY, absent)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        raise MissingLibraryError("openvino", extra="openvino", purpose="the engine openvino") from None
    finally:
        if reporting is absent:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = reporting  # type: ignore[assignment]
    return openvino  # type: ignore[no-any-return]


@cache
def _core() -> Any:
    return _library().Core()


def _message(graph: ir.Model, *, with_weights: bool = True) -> bytes:
    """Return the graph as bytes; without weights, the large ones are inputs of their type and shape."""
    graph = onnx_ir.passes.common.InlinePass()(graph.clone()).model
    graph.ir_version = min(graph.ir_version, _IR_VERSION)
    if not with_weights:
        for name, value in list(graph.graph.initializers.items()):
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= _LARGE_BYTES and not value.is_graph_input():
                del graph.graph.initializers[name]
                value.const_value = None
                graph.graph.inputs.append(value)
    message: bytes = ir.serde.serialize_model(graph).SerializeToString()
    return message


def _other_values(model: Model) -> Iterator[Problem]:
    """Yield the inputs and outputs that are no tensors, or of an element type that the library lacks."""
    for name, value in {**model.signature.inputs, **model.signature.outputs}.items():
        if not isinstance(value, TensorType):
            yield Problem(name, str(value), "OpenVINO takes and gives tensors only")
        elif value.numpy_dtype.isbuiltin != 1 and value.dtype not in _BY_BITS:
            yield Problem(name, str(value), "OpenVINO exchanges no tensors of this element type")


def _problems(model: Model, text: str, pattern: re.Pattern[str]) -> Iterator[Problem]:
    """Yield the nodes whose operators the library lists after the words of `pattern`."""
    listed = [name.strip() for found in pattern.findall(text) for name in found.split(",")]
    reason = "OpenVINO has no translation of it" if pattern is _LACKING else "OpenVINO cannot translate it"
    rest = {_VERSION.sub("", name) for name in listed}
    graph = model.graph
    bodies: list[ir.Graph | ir.Function] = [graph.graph, *graph.functions.values()]
    named: set[str] = set()
    for body in bodies:
        for node in graph_nodes(body):
            prefix = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
            names = {f"{prefix}{node.op_type}", f"util::{node.op_type}"} & rest
            if names:
                named |= names
                opset = body.opset_imports.get(node.domain, 1)
                yield Problem(node_label(node), versioned_operator(node, opset), reason)
    for name in sorted(rest - named):
        yield Problem(name, name, reason)


def _compile_error(model: Model, text: str) -> EduceError:
    problems = [*_problems(model, text, _LACKING), *_problems(model, text, _REFUSED)]
    cause = f"the engine openvino cannot run {model.name}"
    if problems:
        return UnsupportedModelError(cause, problems=problems, path=model.path)
    return UnsupportedModelError(f"{cause}: {_clean(text)}", path=model.path)


def _clean(text: str) -> str:
    """Return a message of the library without places in its sources."""
    return " ".join(_SOURCE.sub("", text).split())


def _launch(compiled: Any, model: Model) -> Launch:
    # An input that no node takes is none of the library's.
    places = {name: place for place, port in enumerate(compiled.inputs) for name in port.names}
    takes = {name: _to_library(value) for name, value in model.signature.inputs.items() if name in places}
    gives = [_from_library(value) for value in model.signature.outputs.values()]
    # A request runs one thing at a time: a run takes one that is free, or makes another.
    free: list[Any] = []

    def launch(feeds: dict[str, Value]) -> Sequence[Value]:
        given = {places[name]: take(feeds[name]) for name, take in takes.items()}
        try:
            request = free.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            found = request.infer(given).to_tuple()
        except Exception as fault:
            raise EngineError(f"OpenVINO failed: {_clean(str(fault))}") from None
        free.append(request)
        return [give(array) for give, array in zip(gives, found, strict=True)]

    return launch


def _to_library(value: ValueType) -> Callable[[np.ndarray], Any]:
    """Return what makes of an array of type `value` a tensor of the library, which shares its memory."""
    assert isinstance(value, TensorType)
    library = _library()
    if value.dtype == "str":
        return lambda array: library.Tensor(np.array(array, str), shared_memory=False)
    if value.dtype not in _BY_BITS:
        return lambda array: library.Tensor(_writeable(array), shared_memory=True)
    bits, element = np.dtype(f"u{value.numpy_dtype.itemsize}"), getattr(library.Type, _BY_BITS[value.dtype])
    return lambda array: library.Tensor(_writeable(array).view(bits), library.Shape(array.shape), element)


def _from_library(value: ValueType) -> Callable[[np.ndarray], np.ndarray]:
    assert isinstance(value, TensorType)
    dtype = value.numpy_dtype
    if value.dtype == "str":
        return lambda array: array.astype(object)
    return (lambda array: array.view(dtype)) if value.dtype in _BY_BITS else (lambda array: array)


def _writeable(array: np.ndarray) -> np.ndarray:
    """Return `array` in C order and writeable, which the library asks for though it writes nothing."""
    return np.require(array, requirements=("C", "W"))
