"""Libraries that others import and hardly ever use: they are loaded when something is first asked of them."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

RARELY_USED = ("sympy", "onnx_ir._symbolic_shapes")
"""What `onnx_ir` computes with the names of sizes by, which takes longer to load than all else of it."""


class _Deferred:
    """A finder of modules that are loaded when they are first asked for an attribute."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in RARELY_USED:
            return None
        from importlib.util import LazyLoader

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def defer() -> None:
    """Have what is rarely used loaded late in this process, wherever it is imported and is not loaded yet."""
    sys.meta_path.insert(0, _Deferred)
