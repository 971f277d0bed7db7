"""`Code`: a graph, read once, from which a program is lowered for each set of input shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from educe.compiler.host import HostCall
from educe.compiler.library import Library
from educe.compiler.lowering import Constants, Lowering, Product
from educe.compiler.operators.base import Call, NeedsValue, NotCompiled, operators
from educe.compiler.program import HostObject, HostStep, Segment, finish
from educe.compiler.target import Target
from educe.compiler.tensor import Buffer, Tensor, dense_strides, dtype_of, kind_of
from educe.errors import EngineError, InputError

Value: TypeAlias = "Tensor | HostObject"

MAX_FOLDED = 4096
"""Elements up to which an operator of known values is computed while lowering."""

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Inputs:
    """The shapes of a program's inputs, in order: what a program is lowered for."""

    shapes: tuple[tuple[np.dtype, tuple[int, ...]] | None, ...]


class Code:
    """The nodes of a graph in order, and how each is run.

    Args:
        graph: The graph; its initializers must be in memory.
        opsets: The operator sets that it imports.
        target: The machine to compile for.
        threads: Threads that a run may use.
        library: Where kernels are found or made.
        constants: Where constants are kept.
        guarded: Whether buffers are surrounded by pages that nobody may touch.
        captured: Names of outer values that a subgraph reads, after its own inputs.
    """

    def __init__(
        self,
        graph: ir.Graph,
        opsets: Mapping[str, int],
        target: Target,
        threads: int,
        library: Library,
        constants: Constants | None = None,
        guarded: bool = False,
        captured: Sequence[str] = (),
    ) -> None:
        self.target, self.threads, self.guarded = target, threads, guarded
        self.opsets = dict(opsets)
        self.constants = constants or Constants()
        self.library = library
        own = (str(value.name) for value in graph.inputs)
        self.inputs = (*(name for name in own if name not in graph.initializers), *captured)
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self._known = {
            str(name): _weight(value.const_value)
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self.calls = [_call(node, opsets) for node in graph]
        self._host = [_host_call(node, self) for node in graph]
        self._uses, self._last_use = self._count()

    def lower(self, inputs: Sequence[Any]) -> Segment:
        """Return the first segment of the program for inputs of the shapes and types of `inputs`."""
        env: dict[str, Value] = {}
        for number, (name, value) in enumerate(zip(self.inputs, inputs, strict=True)):
            env[name] = _described(value, "input", number)
        for name, weight in self._known.items():
            if name not in env:
                env[name] = self._constant(weight)
        for name, value in env.items():
            if isinstance(value, Tensor):
                value.uses = self._uses.get(name, 0)
        plain = all(isinstance(env[name], Tensor) for name in self.inputs)
        return self._continue(env, 0, 0, len(inputs), plain)

    def _constant(self, array: Any) -> Value:
        low = Lowering(self.target, self.threads, self.constants)
        return low.constant(array) if kind_of(array.dtype) else HostObject("constant", 0, array)

    def _count(self) -> tuple[dict[str, int], dict[str, int]]:
        uses: dict[str, int] = {}
        last: dict[str, int] = {}
        for index, (call, host) in enumerate(zip(self.calls, self._host, strict=True)):
            for name in (*call.inputs, *host.captured):
                if name:
                    uses[name] = uses.get(name, 0) + 1
                    last[name] = index
        for name in self.outputs:
            uses[name] = uses.get(name, 0) + 1
            last[name] = len(self.calls)
        return uses, last

    def _continue(
        self, env: dict[str, Value], node: int, number: int, values: int, plain: bool = False
    ) -> Segment:
        """Lower the nodes from `node` on, up to a host step or the end.

        Args:
            env: The values that are known by name; they are changed.
            node: The first node's number.
            number: The number of the segment.
            values: How many inputs and host values there are.
            plain: Whether the program starts here, and every input is an array.
        """
        segment = Segment(number, [])
        low = Lowering(self.target, self.threads, self.constants, number)
        low.launches = segment.launches
        for index in range(node, len(self.calls)):
            step = self._lower_node(low, env, index, values)
            if step is not None:
                self._end_with(segment, low, env, index, step)
                return segment
            for name in self.calls[index].inputs:
                if name and self._last_use[name] == index:
                    env.pop(name, None)
        self._end(segment, low, env, plain)
        return segment

    def _lower_node(
        self, low: Lowering, env: dict[str, Value], index: int, values: int
    ) -> HostStep | None:
        """Lower one node into `env`; return a host step if the segment must end before or with it."""
        call, host = self.calls[index], self._host[index]
        given = [env[name] if name else None for name in call.inputs]
        low.node = call.label
        if host.can_fold and _all_known(given):
            self._bind(low, env, call, host([_content(value) for value in given]))
            return None
        lower = host.lower
        if lower is not None and all(value is None or isinstance(value, Tensor) for value in given):
            try:
                result = lower(low, call, *given)
            except NeedsValue as fault:
                wanted = {
                    name: low.dense(value)
                    for name, value in zip(call.inputs, given, strict=True)
                    if any(value is tensor for tensor in fault.tensors)
                }
                read = tuple(wanted.values())
                return HostStep(call.label, call.operator, read, None, 0, values, tuple(wanted))
            except NotCompiled:
                pass
            except ValueError as fault:
                raise InputError(str(fault), place=f"node {call.label!r} ({call.operator})") from None
            else:
                results = [result] if isinstance(result, Tensor) else list(result)
                self._name(low, env, call, results)
                return None
        captured = [env[name] for name in host.captured]
        read = tuple(
            low.dense(value) if isinstance(value, Tensor) else value for value in (*given, *captured)
        )
        return HostStep(call.label, call.operator, read, host, len(call.outputs), values)

    def _bind(self, low: Lowering, env: dict[str, Value], call: Call, found: Sequence[Any]) -> None:
        results: list[Value | None] = []
        for value in found:
            is_array = isinstance(value, np.ndarray)
            known = is_array and kind_of(value.dtype) is not None
            results.append(low.constant(value) if known else HostObject("constant", 0, value))
        self._name(low, env, call, results)

    def _name(
        self, low: Lowering, env: dict[str, Value], call: Call, results: Sequence[Value | None]
    ) -> None:
        for name, result in zip(call.outputs, results, strict=False):
            if not name or name not in self._uses:
                continue
            assert result is not None, call
            if isinstance(result, Tensor):
                shared = any(result is other for other in env.values())
                result.uses = self._uses[name] + (result.uses if shared else 0)
                if isinstance(result.lazy, Product) and not result.node:
                    result.node = call.label
                if result.lazy is not None and result.uses > 1:
                    low.need(result)
            env[name] = result

    def _end_with(
        self, segment: Segment, low: Lowering, env: dict[str, Value], index: int, step: HostStep
    ) -> None:
        segment.step = step
        kept = [low.need(value) for value in env.values() if isinstance(value, Tensor)]
        kept += [value for value in step.inputs if isinstance(value, Tensor)]
        finish(segment, kept, self.library, self.guarded)
        snapshot = dict(env)
        call = self.calls[index]

        def resume(_key: Any, found: list[Any]) -> Segment:
            env = {name: _copied(value) for name, value in snapshot.items()}
            following = Lowering(self.target, self.threads, self.constants, segment.number + 1)
            if step.call is None:
                self._learn(env, step.names, found)
                return self._continue(env, index, segment.number + 1, step.first)
            results = [_described(value, "host", step.first + place) for place, value in enumerate(found)]
            self._name(following, env, call, results)
            for name in call.inputs:
                if name and self._last_use[name] == index:
                    env.pop(name, None)
            return self._continue(env, index + 1, segment.number + 1, step.first + len(found))

        segment.resume = resume

    def _learn(self, env: dict[str, Value], names: Sequence[str], contents: Sequence[np.ndarray]) -> None:
        """Let the values that were looked at carry their content."""
        low = Lowering(self.target, self.threads, self.constants)
        for name, content in zip(names, contents, strict=True):
            learned = low.constant(np.array(content))
            learned.uses = env[name].uses  # type: ignore[union-attr]
            env[name] = learned

    def _end(self, segment: Segment, low: Lowering, env: dict[str, Value], plain: bool) -> None:
        """Have every output in memory of its own, dense, and finish the last segment."""
        outputs: list[Value] = []
        taken: set[Buffer] = set()
        low.node = "outputs"
        for number, name in enumerate(self.outputs):
            value = env[name]
            if not isinstance(value, Tensor):
                outputs.append(value)
                continue
            dense = low.dense(value)
            buffer = dense.buffer
            assert buffer is not None
            own = (
                buffer.slot == "arena"
                and buffer.segment == segment.number
                and buffer not in taken
                and dense.offset == 0
                and buffer.size_bytes == dense.size * dense.kind.size_bytes
            )
            if not own:
                dense = low.empty(value.kind, value.shape)
                low.copy(value, dense)
                buffer = dense.buffer
                assert buffer is not None
            taken.add(buffer)
            outputs.append(dense)
            buffer.slot, buffer.number = "output", number
        segment.outputs = tuple(outputs)
        arrays = plain and all(isinstance(value, Tensor) for value in outputs)
        segment.has_objects = arrays and not self.guarded
        bases = [("input", number) for number in range(len(self.inputs))]
        bases += [("output", number) for number in range(len(self.outputs))]
        finish(segment, (), self.library, self.guarded, bases if segment.has_objects else ())


class _Host:
    """How one node is run: by its lowering, else by a call of the host."""

    def __init__(self, node: ir.Node, opsets: Mapping[str, int]) -> None:
        domain = "" if node.domain in _STANDARD else node.domain
        self.lower = operators().get((domain, node.op_type))
        self.captured: tuple[str, ...] = ()
        self.can_fold = node.op_type not in _RANDOM
        self._node, self._opsets = node, dict(opsets)
        self._call: HostCall | None = None

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        if self._call is None:
            self._call = HostCall(self._node, self._opsets)
        return self._call(inputs)


_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


def _host_call(node: ir.Node, code: Code) -> _Host:
    return _Host(node, code.opsets)


def _call(node: ir.Node, opsets: Mapping[str, int]) -> Call:
    domain = "" if node.domain in _STANDARD else node.domain
    attributes = {name: _attribute(attribute) for name, attribute in node.attributes.items()}
    return Call(
        node.op_type,
        domain,
        node.version or opsets.get(node.domain, 1),
        attributes,
        tuple("" if value is None else str(value.name) for value in node.inputs),
        tuple(str(value.name or "") for value in node.outputs),
        node.name or str(node.outputs[0].name if node.outputs else node.op_type),
    )


def _attribute(attribute: Any) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return _weight(attribute.value)
    return attribute.value


def _weight(tensor: Any) -> Any:
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.STRING:
        words = [word.decode(errors="replace") for word in array.ravel()]
        return np.array(words, object).reshape(array.shape)
    return np.ascontiguousarray(array).reshape(array.shape)


def _described(value: Any, slot: str, number: int) -> Value:
    """Return what stands for a value of the run while lowering."""
    kind = kind_of(value.dtype) if isinstance(value, np.ndarray) else None
    if kind is None:
        return HostObject(slot, number)
    buffer = Buffer(value.nbytes, slot, number)
    return Tensor(kind, value.shape, dense_strides(value.shape), 0, buffer)


def _copied(value: Value) -> Value:
    if not isinstance(value, Tensor):
        return value
    return Tensor(
        value.kind, value.shape, value.strides, value.offset, value.buffer, value.value, None, value.uses
    )


def _all_known(values: Sequence[Value | None]) -> bool:
    known = [value for value in values if value is not None]
    if not known:
        return False
    size = 0
    for value in known:
        if isinstance(value, HostObject) and value.slot == "constant":
            continue
        if not isinstance(value, Tensor) or value.value is None:
            return False
        size += value.size
    return size <= MAX_FOLDED


def _content(value: Value | None) -> Any:
    if value is None:
        return None
    return value.value  # type: ignore[union-attr]


__all__ = ["Code", "EngineError", "Inputs", "Iterator", "Value", "dtype_of"]
