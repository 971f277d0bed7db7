"""`Plan`: the nodes of a graph in the order in which they run, and how each is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from educe.compiler.control_flow import BODY_CALLS, captured_values, chosen_branch, defined_values
from educe.compiler.folding import fold
from educe.compiler.host import HostCall
from educe.compiler.operators.base import Call, LowerFunction, operators
from educe.compiler.sequences import OBJECT_CALLS
from educe.errors import EduceError, EngineError
from educe.graph.normalize import INTERNAL_OPSET
from educe.model.walk import RANDOM_OPERATORS, STANDARD_DOMAINS, node_label, operator_name, subgraphs

if TYPE_CHECKING:
    from educe.compiler.code import Code

Rename = Callable[[str], str]

RESERVED = "\0"
"""In the names that compiling gives to values, and in no name of a graph."""

_CONSTANTS = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_string": object,
    "value_strings": object,
}

# Set 21 changed what the operator's inputs mean, which its schema does not tell.
_CHANGED = {"GroupNormalization": 21, "PRelu": 7}
# The evaluator has the operators of these.
_DOMAINS_OF_ONNX = ("", "ai.onnx.ml")


class Host:
    """How one node is run: by its lowering, else by a call of the host.

    Attributes:
        lower: Lowers the node; None where no kernel covers its operator as of its operator set.
        captured: The outer values that its subgraphs read, by the plan's names.
        can_fold: Whether it may be computed while lowering.
        is_choice: Whether it is an If: the chosen branch takes its place.
        is_identity: Whether its output is its input.
        rename: From a name in the node's graph to the plan's.
    """

    def __init__(
        self, node: ir.Node, call: Call, code: Code, known: Mapping[str, Any], rename: Rename
    ) -> None:
        is_standard = call.domain == ""
        self.node, self.rename = node, rename
        self.is_choice = is_standard and call.operator == "If"
        self.is_identity = is_standard and call.operator == "Identity"
        self.lower = _lowering(call)
        outer = [name for graph in subgraphs(node) for name in captured_values(graph)]
        names = {name: rename(name) for name in dict.fromkeys(outer)}
        is_known = self.lower is None or call.domain in _DOMAINS_OF_ONNX
        self.can_fold = is_known and node.op_type not in RANDOM_OPERATORS and not any(subgraphs(node))
        unknown = {inner: name for inner, name in names.items() if self.is_choice or name not in known}
        self.captured = tuple(unknown.values())
        self._call: Callable[[Sequence[Any]], list[Any]] | None = None
        if is_standard and call.operator in BODY_CALLS:
            given = {inner: known[name] for inner, name in names.items() if inner not in unknown}
            self._call = BODY_CALLS[call.operator](node, call, code, tuple(unknown), given)
        elif (call.domain, call.operator) in OBJECT_CALLS:
            self._call = lambda inputs: OBJECT_CALLS[call.domain, call.operator](call, *inputs)
        self._opsets = {**code.opsets, node.domain: call.version}
        self._folded = call if has_meaning_of_today(call.operator, call.version, call.domain) else None

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the node's outputs for `inputs`, which the values of `captured` follow.

        Raises:
            InputError: the operator's definition forbids these inputs.
            EngineError: the node failed.
        """
        place = f"node {node_label(self.node)!r} ({operator_name(self.node)})"
        try:
            return self._outputs(inputs)
        except EduceError as error:
            error.place = error.place or place
            raise
        except Exception as fault:
            # The evaluator hides a TypeError behind one that tells of the node's attributes only.
            cause = "not enough memory" if isinstance(fault, MemoryError) else "the host failed"
            raise EngineError(f"{cause}: {fault.__cause__ or fault}", place=place) from None

    def _outputs(self, inputs: Sequence[Any]) -> list[Any]:
        folded = None if self._folded is None else fold(self._folded, inputs)
        if folded is not None:
            return [np.asarray(folded)]
        if self._call is None:
            self._call = HostCall(self.node, self._opsets)
        return self._call(inputs)


class Plan:
    """Nodes in the order in which they run, what is known beforehand, and how often each value is used.

    Attributes:
        calls: The nodes, as lowering reads them.
        hosts: How each is run.
        known: The arrays of initializers and constants, by name.
        outputs: The names of what the plan gives.
        uses: How often each value is read.
        last_use: The number of the node that reads a value last; that of nodes for outputs.
    """

    def __init__(
        self,
        code: Code,
        calls: Sequence[Call],
        hosts: Sequence[Host],
        known: Mapping[str, Any],
        outputs: Sequence[str],
    ) -> None:
        self.calls, self.hosts, self.outputs = list(calls), list(hosts), tuple(outputs)
        self.known = dict(known)
        self.uses: dict[str, int] = {}
        self.last_use: dict[str, int] = {}
        self._code = code
        self._branches: dict[tuple[int, bool], Plan] = {}
        for index, (call, host) in enumerate(zip(self.calls, self.hosts, strict=True)):
            self._read(dict.fromkeys(host.captured), index)
            self._read(call.inputs, index, times=0 if _reads_sizes_only(call) else 1)
        self._read(self.outputs, len(self.calls))

    @classmethod
    def of(cls, code: Code, graph: ir.Graph, known: Mapping[str, Any]) -> Plan:
        """Return the plan of `graph`, whose outer values of `known` are arrays."""
        steps, arrays = _steps(code, graph, known, _same)
        outputs = [str(value.name) for value in graph.outputs]
        return cls(code, [call for call, _ in steps], [host for _, host in steps], arrays, outputs)

    def with_branch(self, index: int, condition: bool) -> Plan:
        """Return this plan with a branch of the If at `index` in its place."""
        key = index, condition
        if key not in self._branches:
            self._branches[key] = self._with_branch(index, condition)
        return self._branches[key]

    def _with_branch(self, index: int, condition: bool) -> Plan:
        call, host = self.calls[index], self.hosts[index]
        graph = chosen_branch(host.node, condition)
        prefix = next(filter(None, call.outputs), call.label)
        inner = {str(value.name): f"{prefix}{RESERVED}{value.name}" for value in defined_values(graph)}

        def rename(name: str) -> str:
            return inner[name] if name in inner else host.rename(name)

        steps, known = _steps(self._code, graph, self.known, rename)
        for value, output in zip(graph.outputs, call.outputs, strict=False):
            if output:
                steps.append(_identity(self._code, rename(str(value.name)), output))
        whole = list(zip(self.calls, self.hosts, strict=True))
        whole[index : index + 1] = steps
        return Plan(self._code, [call for call, _ in whole], [host for _, host in whole], known, self.outputs)

    def _read(self, names: Iterable[str], index: int, times: int = 1) -> None:
        for name in names:
            if name:
                self.uses[name] = self.uses.get(name, 0) + times
                self.last_use[name] = index


def _reads_sizes_only(call: Call) -> bool:
    return call.operator in ("Shape", "Size") and not call.domain


def _steps(
    code: Code, graph: ir.Graph, known: Mapping[str, Any], rename: Rename
) -> tuple[list[tuple[Call, Host]], dict[str, Any]]:
    """Return the nodes of `graph` but its constants, and `known` with its constants and initializers."""
    arrays = dict(known)
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            arrays[rename(name)] = weight_array(value.const_value)
    steps = []
    for node in graph:
        call = _call(node, code.opsets, rename)
        constant = _constant(call)
        if constant is not None:
            arrays[call.outputs[0]] = constant
        else:
            steps.append((call, Host(node, call, code, arrays, rename)))
    return steps, arrays


def _identity(code: Code, source: str, output: str) -> tuple[Call, Host]:
    node = ir.node("Identity", [ir.val(source)], outputs=[ir.val(output)])
    call = _call(node, code.opsets, _same)
    return call, Host(node, call, code, {}, _same)


def _call(node: ir.Node, opsets: Mapping[str, int], rename: Rename) -> Call:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    version = node.version or max((opsets.get(name, 0) for name in (node.domain, domain)), default=0) or 1
    return Call(
        node.op_type,
        domain,
        version,
        {name: _attribute(attribute) for name, attribute in node.attributes.items()},
        tuple("" if value is None else rename(str(value.name)) for value in node.inputs),
        tuple(rename(value.name) if value.name else "" for value in node.outputs),
        node.name or str(node.outputs[0].name if node.outputs else node.op_type),
    )


def _constant(call: Call) -> Any:
    """Return what a Constant gives, None for another node."""
    if call.operator != "Constant" or call.domain:
        return None
    name, value = next(iter(call.attributes.items()))
    if name == "value":
        return value
    return np.array(value, _CONSTANTS[name]) if name in _CONSTANTS else None


def _attribute(attribute: Any) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return weight_array(attribute.value)
    return attribute.value


def weight_array(tensor: Any) -> Any:
    """Return the content of a tensor as a contiguous array, of `str` objects for text."""
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.STRING:
        words = [word.decode(errors="replace") for word in array.ravel()]
        return np.array(words, object).reshape(array.shape)
    return np.ascontiguousarray(array).reshape(array.shape)


def _same(name: str) -> str:
    return name


def _lowering(call: Call) -> LowerFunction | None:
    known = has_kernel(call.domain, call.operator, call.version)
    return operators()[call.domain, call.operator] if known else None


def has_kernel(domain: str, name: str, version: int) -> bool:
    """Say whether an operator of the operator set `version` is compiled."""
    return (domain, name) in operators() and has_meaning_of_today(name, version, domain)


@cache
def is_covered(domain: str, name: str, version: int) -> bool:
    """Say whether an operator has a kernel, or a place of its own on the host."""
    return has_kernel(domain, name, version) or (domain, name) in OBJECT_CALLS


def has_meaning_of_today(name: str, version: int, domain: str = "") -> bool:
    """Say whether an operator of set `version` means what that of `INTERNAL_OPSET` means.

    It does where the newer one has every attribute of the older one, with the same default, and takes as
    many inputs: what was added since is optional, and left out means what it meant before.
    """
    if domain or version >= INTERNAL_OPSET:
        return True
    if version < _CHANGED.get(name, 0):
        return False
    try:
        old, new = (onnx.defs.get_schema(name, max_inclusive_version=v) for v in (version, INTERNAL_OPSET))
    except onnx.defs.SchemaError:
        return True
    if old.since_version == new.since_version:
        return True
    for name, declared in old.attributes.items():
        if name not in new.attributes or new.attributes[name].default_value != declared.default_value:
            return False
    return [each.name for each in old.inputs] == [each.name for each in new.inputs][: len(old.inputs)]
