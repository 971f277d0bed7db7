"""LLVM: text to machine code, and machine code to addresses."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from educe.compiler.target import Target

_LOCK = threading.RLock()


def object_code(text: str, target: Target) -> bytes:
    """Return the object file of LLVM IR `text` for `target`.

    Raises:
        RuntimeError: LLVM refuses the text, which is a fault of ours.
    """
    return bytes(_machine(target).emit_object(optimized(text, target)))


def assembly(text: str, target: Target) -> str:
    """Return the machine code of LLVM IR `text`, as text."""
    return str(_machine(target).emit_assembly(optimized(text, target)))


def optimized(text: str, target: Target) -> Any:
    """Return the module of LLVM IR `text`, optimised without LLVM's own vectorisation."""
    import llvmlite.binding as llvm

    machine = _machine(target)
    with _LOCK:
        module = llvm.parse_assembly(_with_attributes(text, target))
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = False
        options.slp_vectorization = False
        options.loop_unrolling = False
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return module


def _with_attributes(text: str, target: Target) -> str:
    attributes = f'"target-cpu"="{target.cpu}" "target-features"="{target.features}" nounwind'
    if target.lanes == 16:
        attributes += ' "prefer-vector-width"="512" "min-legal-vector-width"="512"'
    return f"{text}\nattributes #0 = {{ {attributes} }}\n"


@cache
def _machine(target: Target) -> Any:
    import llvmlite.binding as llvm

    if target.triple:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    triple = target.triple or llvm.get_process_triple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small", jit=True
    )


class Loader:
    """Object files in this process; their code stays loaded as long as the loader lives."""

    def __init__(self, target: Target) -> None:
        import llvmlite.binding as llvm

        with _LOCK:
            machine = _fresh_machine(target)
            module = llvm.parse_assembly("")
            module.triple = machine.triple
            self._engine = llvm.create_mcjit_compiler(module, machine)
        self._addresses: dict[str, int] = {}

    def load(self, objects: dict[str, bytes]) -> None:
        """Load object files, each by the name of its function."""
        import llvmlite.binding as llvm

        with _LOCK:
            for code in objects.values():
                self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()
            for name in objects:
                self._addresses[name] = self._engine.get_function_address(name)

    def address(self, name: str) -> int:
        """Return the address of a loaded function."""
        return self._addresses[name]

    def function_address(self, name: str) -> int:
        """Return the address of a function inside a loaded file that is named after another."""
        return int(self._engine.get_function_address(name))


def _fresh_machine(target: Target) -> Any:
    """Return a machine of the loader's own, as an execution engine owns its machine."""
    _machine(target)
    return _machine.__wrapped__(target)


@cache
def llvm_version() -> str:
    """Return the versions of LLVM and of the package that brings it."""
    import llvmlite
    import llvmlite.binding as llvm

    return f"{'.'.join(str(part) for part in llvm.llvm_version_info)} (llvmlite {llvmlite.__version__})"
