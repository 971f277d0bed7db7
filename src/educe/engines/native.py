"""The engine `native`: Educe's own compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from educe.engines.base import Engine, Executable, Options, State, Support, Value, owned
from educe.errors import EngineError, MissingLibraryError
from educe.machine import usable_cores
from educe.model import Model
from educe.settings import GUARD, SHARE, resolve_threads

if TYPE_CHECKING:
    import onnx_ir as ir

    from educe.compiler.executor import Executor
    from educe.compiler.program import Segment

_LACKING = "there is neither a kernel nor an implementation on the host"


class NativeExecutable(Executable):
    """A model as machine code.

    Attributes:
        executor: Lowers the model for the shapes that it meets, and runs it.
    """

    __slots__ = ("executor",)

    def __init__(self, model: Model, executor: Executor) -> None:
        run, names = executor.run, executor.code.inputs

        def launch(feeds: dict[str, Value]) -> Sequence[Value]:
            try:
                found = run([feeds[name] for name in names])
            except MemoryError as fault:
                raise EngineError(f"not enough memory: {fault}") from None
            return [each if _is_new(each) else owned(each) for each in found]

        super().__init__(NativeEngine.name, model, launch)
        self.executor = executor

    def run(self, inputs: Mapping[str, Value], state: State | None = None) -> dict[str, Value]:
        """Run the model once; see `Executable.run`."""
        answer = self.executor.answer
        if answer is not None and state is None:
            found = answer(inputs)
            if found is not None:
                return found
        return super().run(inputs, state)

    def prepare(self, feeds: Mapping[str, Value]) -> None:
        """Make the program, up to the first step of the host; see `Executable.prepare`."""
        self.executor.program([feeds[name] for name in self.executor.code.inputs])

    def compile_seconds(self) -> float:
        """Return how long this thread's runs of any model so far have compiled."""
        from educe.compiler.executor import compile_seconds

        return compile_seconds()

    @property
    def most_runs(self) -> int:
        """How many runs beside each other end sooner than one after the other: one for each thread."""
        return min(usable_cores(), self.executor.code.threads)

    def crowd(self, by: int) -> None:
        """Take note of so many more, or fewer, threads beside one: with one a core, runs keep to theirs."""
        self.executor.runtime.crowd(by)

    def program(self, feeds: Mapping[str, Value]) -> list[Segment]:
        """Return the segments that a run of `feeds` goes through."""
        clocks: list[tuple[Segment, np.ndarray]] = []
        self.timed(feeds, clocks)
        return [segment for segment, _ in clocks]

    def timed(self, feeds: Mapping[str, Value], clocks: list[tuple[Segment, np.ndarray]]) -> None:
        """Run `feeds`, and add each segment with the time stamps before its launches and after the last."""
        self.executor.walk([feeds[name] for name in self.executor.code.inputs], clocks)


class NativeEngine(Engine):
    """Machine code made by `educe.compiler` through LLVM; source: this package."""

    name: ClassVar[str] = "native"

    def version(self) -> str | None:
        """Return Educe's own version, or None if LLVM is not installed."""
        from educe import __version__

        return __version__ if find_spec("llvmlite") else None

    def devices(self) -> list[str]:
        """Return ``CPU`` with the instruction set that is compiled for."""
        from educe.compiler.target import host_target

        return [f"CPU ({host_target().name})"] if self.version() else []

    def supports(self, model: Model) -> Support:
        """Say which nodes have neither a kernel nor an implementation on the host."""
        from educe.compiler.plan import is_covered
        from educe.engines.reference import problems

        if not any(problems(model.graph, is_covered)):
            return Support()
        lacking = problems(prepared(model, "none"), is_covered)
        return Support(tuple(replace(problem, reason=_LACKING) for problem in lacking))

    def compile(self, model: Model, options: Options) -> NativeExecutable:
        """Compile `model`; see `Engine.compile`."""
        graph = prepared(model, options.graph_optimization)
        if SHARE.value():
            _share_weights(graph)
        return self.compile_prepared(model, graph, options)

    def compile_prepared(self, model: Model, graph: ir.Model, options: Options) -> NativeExecutable:
        """Compile a graph for `model` that is as `prepared` gives it, and is not changed.

        Raises:
            MissingLibraryError: LLVM is not installed.
        """
        if self.version() is None:
            raise MissingLibraryError("llvmlite", extra="", purpose="the engine native")
        from educe.compiler.code import Code
        from educe.compiler.executor import Executor
        from educe.compiler.library import library
        from educe.compiler.lowering import Constants
        from educe.compiler.memory import aligned, shared
        from educe.compiler.runtime import runtime
        from educe.compiler.target import host_target

        target = host_target()
        threads = resolve_threads(options.threads)
        pool = runtime(target)
        pool.grow(threads)
        guarded, is_shared = bool(GUARD.value()), bool(SHARE.value())
        code = Code(
            graph.graph,
            graph.opset_imports,
            target,
            threads,
            library(target),
            lambda inner: Executor(inner, pool),
            Constants(shared if is_shared else aligned),
            guarded,
        )
        executor = Executor(code, pool, options.memory_arena)
        return NativeExecutable(model, executor)


def prepared(model: Model, optimization: str) -> ir.Model:
    """Return the graph as the compiler takes it: one operator set, no calls of functions."""
    from educe.compiler.plan import has_kernel
    from educe.graph.normalize import INTERNAL_OPSET, infer_shapes, normalize
    from educe.graph.passes import expand_functions, optimize, plain

    if model.graph.opset_imports.get("", INTERNAL_OPSET) < INTERNAL_OPSET:
        model = normalize(model)
    graph = plain(model.graph)
    if optimization == "none":
        graph = graph.clone()
        infer_shapes(graph)
    else:
        graph = optimize(graph, has_kernel)
    expand_functions(graph, has_kernel)
    return graph


def _share_weights(graph: ir.Model) -> None:
    """Have all processes that do so hold the large weights of a graph once."""
    import onnx_ir as ir

    from educe.compiler.memory import interned

    for value in graph.graph.initializers.values():
        weight = value.const_value
        if weight is None or weight.dtype == ir.DataType.STRING:
            continue
        if (array := interned(weight.numpy())) is not None:
            value.const_value = ir.Tensor(array, weight.dtype, name=value.name)


def _is_new(value: Value) -> bool:
    """Say whether `value` was made by the run: sequences and text may be inputs or constants."""
    return isinstance(value, np.ndarray) and value.dtype != object
