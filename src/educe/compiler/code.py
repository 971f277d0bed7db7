"""`Code`: a graph, read once, from which a program is lowered for each set of input shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from educe.compiler.folding import repeats
from educe.compiler.library import Library
from educe.compiler.lowering import Constants, Lowering, Product
from educe.compiler.operators.base import Call, NeedsValue, NotCompiled
from educe.compiler.plan import RESERVED, Plan
from educe.compiler.program import HostObject, HostStep, Segment, finish
from educe.compiler.target import Target
from educe.compiler.tensor import Buffer, Tensor, dense_strides, kind_of
from educe.errors import EngineError, InputError

Value: TypeAlias = "Tensor | HostObject"

MAX_FOLDED = 4096
"""Elements up to which an operator of known values is computed while lowering."""

# Before the names of what a node keeps while it waits for a value.
_KEPT = RESERVED


class Runner(Protocol):
    """What runs a `Code`, again and again."""

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs for `inputs`, in the code's order."""

    def program(self, inputs: Sequence[Any]) -> Segment:
        """Return the program for inputs of these shapes."""


class Code:
    """The nodes of a graph in order, and how each is run.

    Args:
        graph: The graph; its initializers must be in memory.
        opsets: The operator sets that it imports.
        target: The machine to compile for.
        threads: Threads that a run may use.
        library: Where kernels are found or made.
        runner: What runs the code of a subgraph.
        constants: Where constants are kept.
        guarded: Whether buffers are surrounded by pages that nobody may touch.
        captured: Names of outer values that a subgraph reads, after its own inputs.
        known: Arrays of outer values that a subgraph reads, by name.
    """

    def __init__(
        self,
        graph: ir.Graph,
        opsets: Mapping[str, int],
        target: Target,
        threads: int,
        library: Library,
        runner: Callable[[Code], Runner],
        constants: Constants | None = None,
        guarded: bool = False,
        captured: Sequence[str] = (),
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self.target, self.threads, self.guarded = target, threads, guarded
        self.opsets = dict(opsets)
        self.constants = constants or Constants()
        self.library, self.runner = library, runner
        own = (str(value.name) for value in graph.inputs)
        self.inputs = (*(name for name in own if name not in graph.initializers), *captured)
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self.has_free_sizes = any(_is_free(value) for value in graph.inputs)
        self._plan = Plan.of(self, graph, known or {})

    def inner(self, graph: ir.Graph, captured: Sequence[str], known: Mapping[str, Any]) -> Code:
        """Return the code of a subgraph, which is run by itself."""
        return Code(
            graph,
            self.opsets,
            self.target,
            self.threads,
            self.library,
            self.runner,
            self.constants,
            self.guarded,
            captured,
            known,
        )

    def lower(self, inputs: Sequence[Any]) -> Segment:
        """Return the first segment of the program for inputs of the shapes and types of `inputs`."""
        env: dict[str, Value] = {}
        for number, (name, value) in enumerate(zip(self.inputs, inputs, strict=True)):
            env[name] = _described(value, "input", number)
        self._enter(self._plan, env)
        plain = all(isinstance(env[name], Tensor) for name in self.inputs)
        return self._continue(self._plan, env, 0, 0, len(inputs), plain)

    def _constant(self, array: Any) -> Value:
        low = Lowering(self.target, self.threads, self.constants)
        return low.constant(array, kept=True) if kind_of(array.dtype) else HostObject("constant", 0, array)

    def _enter(self, plan: Plan, env: dict[str, Value], node: int = 0) -> None:
        """Have in `env` what `plan` knows, and what it reads from `node` on, with their uses."""
        for name in [name for name in env if plan.last_use.get(name, -1) < node and node]:
            del env[name]
        for name, array in plan.known.items():
            if name not in env and plan.last_use.get(name, -1) >= node:
                env[name] = self._constant(array)
        for name, value in env.items():
            if isinstance(value, Tensor):
                value.uses = max(plan.uses.get(name, 0), value.uses if node else 0)

    def _continue(
        self,
        plan: Plan,
        env: dict[str, Value],
        node: int,
        number: int,
        values: int,
        plain: bool = False,
        on_host: bool = False,
    ) -> Segment:
        """Lower the nodes from `node` on, up to a host step or the end.

        Args:
            plan: The nodes; the chosen branch takes the place of an If.
            env: The values that are known by name; they are changed.
            node: The first node's number.
            number: The number of the segment.
            values: How many inputs and host values there are.
            plain: Whether the program starts here, and every input is an array.
            on_host: Whether the first node is left to the host.
        """
        segment = Segment(number, [])
        low = Lowering(self.target, self.threads, self.constants, number)
        low.launches, low.checks = segment.launches, segment.checks
        if self.has_free_sizes:
            low.expected = segment.expected
        low.kept = {name[len(_KEPT) :]: env.pop(name) for name in list(env) if name.startswith(_KEPT)}
        index = node
        while index < len(plan.calls):
            condition = _known_condition(plan, index, env)
            if condition is not None:
                plan = plan.with_branch(index, condition)
                self._enter(plan, env, index)
                continue
            step = self._lower_node(low, plan, env, index, values, on_host and index == node)
            if step is not None:
                self._end_with(segment, low, plan, env, index, step)
                return segment
            _forget(plan, env, index)
            low.kept = {}
            index += 1
        self._end(segment, low, env, plain)
        return segment

    def _lower_node(
        self,
        low: Lowering,
        plan: Plan,
        env: dict[str, Value],
        index: int,
        values: int,
        on_host: bool = False,
    ) -> HostStep | None:
        """Lower one node into `env`; return a host step if the segment must end before or with it."""
        call, host = plan.calls[index], plan.hosts[index]
        given = [env[name] if name else None for name in call.inputs]
        low.node, low.place = call.label, f"node {call.label!r} ({call.operator})"
        if host.is_choice:
            condition = tuple(low.dense(value) for value in given if isinstance(value, Tensor))
            return HostStep(call.label, call.operator, condition, None, 0, values, call.inputs)
        if host.is_identity:
            self._name(low, plan, env, call, given)
            return None
        if host.can_fold and _all_known(given):
            contents = [_content(value) for value in given]
            if host.lower is None or not repeats(call, contents):
                self._bind(low, plan, env, call, host(contents))
                return None
        lower = None if on_host else host.lower
        if lower is not None and all(value is None or isinstance(value, Tensor) for value in given):
            try:
                result = lower(low, call, *given)
            except NeedsValue as fault:
                return self._look(low, env, call, fault, values)
            except NotCompiled:
                pass
            except (ValueError, OverflowError) as fault:
                raise InputError(str(fault), place=low.place) from None
            except MemoryError as fault:
                raise EngineError(f"not enough memory: {fault}", place=low.place) from None
            else:
                results = [result] if isinstance(result, Tensor) else list(result)
                self._name(low, plan, env, call, results)
                return None
        captured = [env[name] for name in host.captured]
        read = tuple(
            low.dense(value) if isinstance(value, Tensor) else value for value in (*given, *captured)
        )
        return HostStep(call.label, call.operator, read, host, len(call.outputs), values)

    def _look(
        self, low: Lowering, env: dict[str, Value], call: Call, fault: NeedsValue, values: int
    ) -> HostStep:
        """Return a look at what lowering a node needs to know; what the node has launched stays in `env`."""
        env.update({_KEPT + name: low.need(tensor) for name, tensor in fault.kept.items()})
        wanted: dict[str, Tensor] = {}
        for name in (*call.inputs, *(_KEPT + name for name in fault.kept)):
            value = env.get(name)
            if isinstance(value, Tensor) and any(value is tensor for tensor in fault.tensors):
                wanted[name] = low.dense(value)
        read, names = tuple(wanted.values()), tuple(wanted)
        return HostStep(call.label, call.operator, read, None, 0, values, names, can_call=not call.domain)

    def _bind(
        self, low: Lowering, plan: Plan, env: dict[str, Value], call: Call, found: Sequence[Any]
    ) -> None:
        results: list[Value | None] = []
        for value in found:
            is_array = isinstance(value, np.ndarray)
            known = is_array and kind_of(value.dtype) is not None
            results.append(low.constant(value) if known else HostObject("constant", 0, value))
        self._name(low, plan, env, call, results)

    def _name(
        self,
        low: Lowering,
        plan: Plan,
        env: dict[str, Value],
        call: Call,
        results: Sequence[Value | None],
    ) -> None:
        varies = self.has_free_sizes and any(_may_vary(env.get(name)) for name in call.inputs if name)
        for name, result in zip(call.outputs, results, strict=False):
            if not name or name not in plan.uses:
                continue
            assert result is not None, call
            if isinstance(result, Tensor):
                result.varies |= varies
                shared = result.uses and any(result is other for other in env.values())
                result.uses = plan.uses[name] + (result.uses if shared else 0)
                if isinstance(result.lazy, Product) and not result.node:
                    result.node = call.label
                if result.lazy is not None and result.uses > 1:
                    low.need(result)
            env[name] = result

    def _end_with(
        self, segment: Segment, low: Lowering, plan: Plan, env: dict[str, Value], index: int, step: HostStep
    ) -> None:
        segment.step = step
        kept = [low.need(value) for value in env.values() if isinstance(value, Tensor)]
        kept += [value for value in step.inputs if isinstance(value, Tensor)]
        finish(segment, kept, self.library, self.guarded)
        snapshot = dict(env)
        call = plan.calls[index]

        def resume(found: list[Any] | None) -> Segment:
            env = {name: _copied(value) for name, value in snapshot.items()}
            following = Lowering(self.target, self.threads, self.constants, segment.number + 1)
            if found is None:
                return self._continue(plan, env, index, segment.number + 1, step.first, on_host=True)
            if step.call is None:
                self._learn(env, step.names, found)
                return self._continue(plan, env, index, segment.number + 1, step.first)
            results = [_described(value, "host", step.first + place) for place, value in enumerate(found)]
            self._name(following, plan, env, call, results)
            _forget(plan, env, index)
            return self._continue(plan, env, index + 1, segment.number + 1, step.first + len(found))

        segment.resume = resume

    def _learn(self, env: dict[str, Value], names: Sequence[str], contents: Sequence[np.ndarray]) -> None:
        """Let the values that were looked at carry their content."""
        low = Lowering(self.target, self.threads, self.constants)
        for name, content in zip(names, contents, strict=True):
            learned = low.constant(np.array(content))
            learned.varies = True
            learned.uses = env[name].uses  # type: ignore[union-attr]
            env[name] = learned

    def _end(self, segment: Segment, low: Lowering, env: dict[str, Value], plain: bool) -> None:
        """Have every output in memory of its own, dense, and finish the last segment."""
        outputs: list[Value] = []
        taken: set[Buffer] = set()
        low.node = "outputs"
        for number, name in enumerate(self.outputs):
            low.place = f"output {name!r}"
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


def _known_condition(plan: Plan, index: int, env: dict[str, Value]) -> bool | None:
    """Return the condition of the If at `index`; None if it is not known, or the node is another."""
    if not plan.hosts[index].is_choice:
        return None
    condition = env[plan.calls[index].inputs[0]]
    if isinstance(condition, Tensor) and condition.value is None and condition.size == 1:
        return None
    if not isinstance(condition, Tensor) or condition.value is None or condition.size != 1:
        raise InputError("a condition of If is not one element", place=f"node {plan.calls[index].label!r}")
    return bool(condition.value.item())


def _forget(plan: Plan, env: dict[str, Value], index: int) -> None:
    """Drop from `env` what no node after `index` reads."""
    for name in (*plan.calls[index].inputs, *plan.hosts[index].captured):
        if name and plan.last_use[name] == index:
            env.pop(name, None)


def _described(value: Any, slot: str, number: int) -> Value:
    """Return what stands for a value of the run while lowering."""
    kind = kind_of(value.dtype) if isinstance(value, np.ndarray) else None
    if kind is None:
        return HostObject(slot, number)
    buffer = Buffer(value.nbytes, slot, number)
    return Tensor(kind, value.shape, dense_strides(value.shape), 0, buffer)


def _copied(value: Value) -> Value:
    return dataclasses.replace(value, lazy=None, node="") if isinstance(value, Tensor) else value


def _may_vary(value: Value | None) -> bool:
    """Say whether a value is another one for other inputs, or for other sizes of them."""
    return not isinstance(value, Tensor) or value.value is None or value.varies


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


def _is_free(value: ir.Value) -> bool:
    return value.shape is None or not all(isinstance(size, int) for size in value.shape)


def _content(value: Value | None) -> Any:
    if value is None:
        return None
    return value.value
