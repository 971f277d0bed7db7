"""Functions: calls of a model's own, and of operators that ONNX defines by one, become their bodies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common

from educe.model.walk import STANDARD_DOMAINS, all_nodes

IsCompiled = Callable[[str, str, int], bool]
"""Says whether an operator has a kernel: by domain, name, and operator set."""

# Operators that ONNX's evaluator cannot run by itself, as it knows no types of single nodes.
_NEVER_CALLED = {"GroupNormalization"}
_DOMAIN = "educe.body"
_MAX_DEPTH = 8


def inline_functions(model: ir.Model, keeps: Callable[[ir.Function], bool] | None = None) -> bool:
    """Replace calls of the model's own functions, but of those that `keeps` names, by their bodies.

    Nodes of a body written for other operator sets than the model's remember theirs.
    """
    if not model.functions:
        return False
    for function in model.functions.values():
        for node in function.all_nodes():
            version = function.opset_imports.get(node.domain)
            if version != model.opset_imports.get(node.domain, version):
                node.version = version
        for domain in function.opset_imports:
            if domain in model.opset_imports:
                function.opset_imports[domain] = model.opset_imports[domain]
    inline = onnx_ir.passes.common.InlinePass(None if keeps is None else lambda each: not keeps(each))
    return bool(inline(model).modified)


def expand_functions(model: ir.Model, is_compiled: IsCompiled) -> bool:
    """Replace calls of operators without a kernel by the body that ONNX defines, in place.

    1. All operators of the body have kernels.
    2. Nothing else can run the operator.
    """
    changed = False
    for _ in range(_MAX_DEPTH):
        found = [node for node in all_nodes(model) if _is_expanded(node, model, is_compiled)]
        bodies = [(node, body) for node in found if (body := _body(node, model)) is not None]
        if not bodies:
            return changed
        for number, (node, body) in enumerate(bodies):
            body.domain, body.name = _DOMAIN, f"{node.op_type}{number}"
            function = ir.serde.deserialize_function(body)
            model.functions[function.identifier()] = function
            _with_defaults(node, _version(node, model))
            node.domain, node.op_type, node.overload, node.version = _DOMAIN, body.name, "", None
        inline_functions(model)
        model.opset_imports.pop(_DOMAIN, None)
        changed = True
    return changed


def _version(node: ir.Node, model: ir.Model) -> int:
    return int(node.version or model.opset_imports.get(node.domain, 1))


def _is_expanded(node: ir.Node, model: ir.Model, is_compiled: IsCompiled) -> bool:
    if node.domain not in STANDARD_DOMAINS or is_compiled("", node.op_type, _version(node, model)):
        return False
    if node.op_type in _NEVER_CALLED:
        return True
    body = _body(node, model)
    if body is None:
        return False
    versions = {each.domain: each.version for each in body.opset_import}
    return all(
        each.op_type == "Constant" or is_compiled(each.domain, each.op_type, versions.get(each.domain, 1))
        for each in body.node
    )


def _schema(node: ir.Node, version: int) -> Any:
    try:
        return onnx.defs.get_schema(node.op_type, max_inclusive_version=version)
    except onnx.defs.SchemaError:
        return None


def _body(node: ir.Node, model: ir.Model) -> onnx.FunctionProto | None:
    """Return the body by which ONNX defines the operator of `node`, None if there is none."""
    version = _version(node, model)
    schema = _schema(node, version)
    if schema is None:
        return None
    content = b""
    fitting = [each for each in schema.function_opset_versions if each <= version]
    if fitting:
        content = schema.get_function_with_opset_version(max(fitting))
    elif schema.has_context_dependent_function:
        fitting = [each for each in schema.context_dependent_function_opset_versions if each <= version]
        types = [_type(value) for value in node.inputs]
        if fitting and None not in types:
            proto = ir.serde.serialize_node(node).SerializeToString()
            content = schema.get_context_dependent_function_with_opset_version(max(fitting), proto, types)
    return onnx.FunctionProto.FromString(content) if content else None


def _type(value: ir.Value | None) -> bytes | None:
    if value is None:
        return b""
    if value.type is None:
        return None
    return bytes(ir.serde.serialize_value(value).type.SerializeToString())


def _with_defaults(node: ir.Node, version: int) -> None:
    """Write down the attributes that `node` leaves out: a body refers to them."""
    schema = _schema(node, version)
    assert schema is not None
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
