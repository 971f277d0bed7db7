"""LLVM: text to machine code."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from educe.compiler.target import Target
from educe.machine import ForkedLock

_LOCK = ForkedLock()


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


@cache
def llvm_version() -> str:
    """Return the version of the package that brings LLVM."""
    return f"llvmlite {version('llvmlite')}"
