"""A model's program, compiled for AArch64 and run by QEMU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from educe.compiler import jit
from educe.compiler.code import Code
from educe.compiler.kernel import Kernel
from educe.compiler.program import Segment
from educe.compiler.target import TARGETS, Target
from educe.compiler.tensor import Buffer, Tensor, dtype_of
from educe.engines.native import prepared
from educe.model import Model

NEON = TARGETS["neon"]
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
IS_INSTALLED = bool(shutil.which(COMPILER) and shutil.which(EMULATOR))


class Objects:
    """Stands for the library of kernels: it numbers them instead of loading them."""

    def __init__(self) -> None:
        self.kernels: dict[Kernel, int] = {}

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Give each new kernel a number."""
        for kernel in kernels:
            self.kernels.setdefault(kernel, len(self.kernels))

    def prepared(self, kernel: Kernel) -> Kernel:
        """Return the kernel itself."""
        return kernel

    def address(self, kernel: Kernel) -> int:
        """Return the kernel's number."""
        return self.kernels[kernel]


def _refused(inner: Code) -> Any:
    raise NotImplementedError(f"a body with outputs {inner.outputs} runs on the host")


def run(
    model: Model, feeds: dict[str, np.ndarray], folder: Path, target: Target = NEON
) -> dict[str, np.ndarray]:
    """Return the outputs of `model`, computed by AArch64 code; host steps are not supported."""
    objects = Objects()
    graph = prepared(model, "default")
    code = Code(graph.graph, graph.opset_imports, target, 1, objects, _refused)  # type: ignore[arg-type]
    inputs = [np.asarray(feeds[name], order="C") for name in code.inputs]
    segment = code.lower(inputs)
    assert segment.step is None, f"{segment.step.operator} runs on the host"
    assert segment.launches
    program = _link(objects, folder, target)
    done = subprocess.run(
        [EMULATOR, str(program)], input=_message(segment, inputs, objects), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    outputs: dict[str, Any] = {}
    content = done.stdout
    for name, tensor in zip(code.outputs, segment.outputs, strict=True):
        assert isinstance(tensor, Tensor)
        dtype = dtype_of(tensor.kind)
        size = tensor.size * dtype.itemsize
        outputs[name] = np.frombuffer(content[:size], dtype).reshape(tensor.shape)
        content = content[size:]
    return outputs


def _link(objects: Objects, folder: Path, target: Target) -> Path:
    """Return a static executable of the kernels and of ``run.c``."""
    names = [kernel.name for kernel in objects.kernels]
    files = []
    for kernel in objects.kernels:
        path = folder / f"{kernel.name}.o"
        path.write_bytes(jit.object_code(kernel.text(target), target))
        files.append(str(path))
    table = folder / "table.c"
    declarations = "\n".join(f"extern void {name}();" for name in names)
    table.write_text(f"{declarations}\nvoid *kernels[] = {{{', '.join([*names, '0'])}}};\n")
    program = folder / "program"
    source = Path(__file__).with_name("run.c")
    command = [COMPILER, "-O1", "-w", "-static", "-o", str(program), str(source), str(table), *files, "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return program


def _message(segment: Segment, inputs: list[np.ndarray], objects: Objects) -> bytes:
    buffers: dict[Any, int] = {}
    parts: list[bytes] = []

    def number(key: Any, size: int, content: bytes | None) -> int:
        if key not in buffers:
            buffers[key] = len(buffers)
            parts.append(_words(size, content is not None) + (content or b""))
        return buffers[key]

    def place(buffer: Buffer) -> tuple[int, int]:
        if buffer.slot == "arena":
            return number("arena", segment.arena_bytes, None), buffer.offset
        if buffer.slot == "constant":
            assert buffer.constant is not None
            return number(id(buffer.constant), buffer.size_bytes, buffer.constant.tobytes()), 0
        if buffer.slot == "status":
            return number("status", len(segment.checks), bytes(len(segment.checks))), 0
        content = inputs[buffer.number].tobytes() if buffer.slot == "input" else None
        return number((buffer.slot, buffer.number), buffer.size_bytes, content), 0

    launches = []
    for launch in segment.launches:
        words = [objects.address(launch.kernel), launch.extent, launch.chunk, len(launch.tensors)]
        for tensor in launch.tensors:
            assert tensor.buffer is not None
            index, offset = place(tensor.buffer)
            words += [index, offset + tensor.offset * tensor.kind.size_bytes]
        launches.append(_words(*words, len(launch.sizes), *launch.sizes))
    outputs = []
    for tensor in segment.outputs:
        assert isinstance(tensor, Tensor)
        assert tensor.buffer is not None
        outputs.append(place(tensor.buffer)[0])
    return b"".join(
        [
            _words(len(buffers)),
            *parts,
            _words(segment.scratch_bytes, len(launches)),
            *launches,
            _words(len(outputs), *outputs),
        ]
    )


def _words(*values: int) -> bytes:
    return np.array(values, np.int64).tobytes()
