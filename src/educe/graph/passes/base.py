"""What a pass is."""

from __future__ import annotations

from typing import ClassVar, Protocol

import onnx_ir as ir


class Pass(Protocol):
    """A change of a graph that keeps its meaning; its class's docstring numbers the cases.

    Attributes:
        name: What it is called in messages.
    """

    name: ClassVar[str]

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
