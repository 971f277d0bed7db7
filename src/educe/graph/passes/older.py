"""Operators of older sets, said in those of today where ONNX's converter does not."""

from __future__ import annotations

import onnx_ir as ir

from educe.graph.normalize import INTERNAL_OPSET
from educe.graph.passes.base import edits, is_call

_FLATTENS_BEFORE = 13


class OlderSoftmax:
    """Says what older sets take as one long dimension.

    1. Softmax, LogSoftmax and Hardmax before 13 see all dimensions from their axis on, by default 1, as one.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        changed = False
        for edit in edits(model):
            for node in list(edit.graph):
                version = node.version or model.opset_imports.get("", INTERNAL_OPSET)
                if not is_call(node, "Softmax", "LogSoftmax", "Hardmax") or version >= _FLATTENS_BEFORE:
                    continue
                x, output, today = node.inputs[0], node.outputs[0], INTERNAL_OPSET
                axis = node.attributes.get_int("axis", 1)
                shape = edit.insert(node, "Shape", [x], version=today)
                rows = edit.insert(node, "Flatten", [x], {"axis": axis}, version=today)
                found = edit.insert(node, node.op_type, [rows], {"axis": -1}, version=today)
                edit.replace(output, edit.insert(node, "Reshape", [found, shape], like=output, version=today))
                edit.remove([node])
            changed |= edit.changed
        return changed
