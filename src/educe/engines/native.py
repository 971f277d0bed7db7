"""The engine `native`: Educe's own compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from educe.engines.base import Engine, Executable, Options, Support, Value
from educe.errors import MissingLibraryError
from educe.model import Model
from educe.settings import resolve_threads


class NativeEngine(Engine):
    """Machine code made by `educe.compiler` through LLVM; source: this package."""

    name: ClassVar[str] = "native"

    def version(self) -> str | None:
        """Return Educe's own version, or None if LLVM is not installed."""
        from educe import __version__

        try:
            import llvmlite  # noqa: F401
        except ImportError:
            return None
        return __version__

    def devices(self) -> list[str]:
        """Return ``CPU`` with the instruction set that is compiled for."""
        from educe.compiler.target import host_target

        return [f"CPU ({host_target().name})"] if self.version() else []

    def supports(self, model: Model) -> Support:
        """Say which nodes have neither a kernel nor an implementation on the host."""
        from educe.engines.reference import ReferenceEngine

        return ReferenceEngine().supports(model)

    def compile(self, model: Model, options: Options) -> Executable:
        """Compile `model`; see `Engine.compile`."""
        if self.version() is None:
            raise MissingLibraryError("llvmlite", extra="", purpose="the engine native")
        from educe.compiler.code import Code
        from educe.compiler.executor import Executor
        from educe.compiler.library import library
        from educe.compiler.runtime import runtime
        from educe.compiler.target import host_target

        target = host_target()
        threads = resolve_threads(options.threads)
        pool = runtime(target)
        pool.grow(threads)
        graph = model.graph
        code = Code(graph.graph, graph.opset_imports, target, threads, library(target))
        executor = Executor(code, pool, options.memory_arena)

        def launch(feeds: dict[str, Value]) -> Sequence[Value]:
            return executor.run([feeds[name] for name in code.inputs])

        return Executable(self.name, model, launch)
