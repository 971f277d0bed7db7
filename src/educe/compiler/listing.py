"""Programs as text: their launches, their memory, their code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from educe.compiler import jit
from educe.compiler.kernel import Kernel
from educe.compiler.program import HostObject, Launch, Segment
from educe.compiler.target import Target
from educe.compiler.tensor import Tensor, dense_strides, same_strides


def program_text(segments: Iterable[Segment]) -> str:
    """Return the launches and host steps in order, one a line: what it is, which node, output, inputs."""
    rows: list[tuple[str, ...]] = []
    for segment in segments:
        for launch in segment.launches:
            outputs = ", ".join(_tensor(each) for each in launch.outputs)
            inputs = ", ".join(_tensor(each) for each in launch.inputs)
            rows.append((launch.kernel.template, launch.node, outputs, inputs, _ending(launch)))
        step = segment.step
        if step is not None:
            what = "host read" if step.call is None else "host call"
            inputs = ", ".join(_operand(each) for each in step.inputs if each is not None)
            rows.append((what, step.node, step.operator, inputs, ""))
    return _columns(("kernel", "node", "output", "inputs", "ends with"), rows)


def memory_text(segments: Iterable[Segment]) -> str:
    """Return the buffers of each arena, by their place, with the launches between which they live."""
    rows: list[tuple[str, ...]] = []
    total = 0
    for segment in segments:
        total += segment.arena_bytes
        times: dict[int, list[int]] = {}
        for index, launch in enumerate(segment.launches):
            for tensor in launch.tensors:
                if tensor.buffer is not None and tensor.buffer in segment.buffers:
                    times.setdefault(tensor.buffer.offset, []).append(index)
        for buffer in sorted(segment.buffers, key=lambda buffer: buffer.offset):
            lives = times.get(buffer.offset, [0])
            rows.append(
                (
                    str(segment.number),
                    str(buffer.offset),
                    str(buffer.size_bytes),
                    f"{min(lives)}-{max(lives)}",
                )
            )
    return f"{_columns(('segment', 'offset', 'bytes', 'launches'), rows)}\narena: {total} bytes"


def code_text(segments: Iterable[Segment], target: Target, machine_code: bool) -> str:
    """Return every kernel once, as LLVM IR or as the target's assembly."""
    kernels = {launch.kernel: None for segment in segments for launch in segment.launches}
    return "\n".join(_code(kernel, target, machine_code) for kernel in kernels)


def _code(kernel: Kernel, target: Target, machine_code: bool) -> str:
    text = kernel.text(target)
    mark = "#" if machine_code else ";"
    return f"{mark} {kernel}\n{jit.assembly(text, target) if machine_code else text}"


def _ending(launch: Launch) -> str:
    """Return the expression that a kernel computes of each element, in short."""
    expression = dict(launch.kernel.choices).get("expression")
    text = "" if expression is None else repr(expression).partition("->")[2]
    return "" if text == "x0" else text


def _tensor(tensor: Tensor) -> str:
    layout = "" if same_strides(tensor.shape, tensor.strides, dense_strides(tensor.shape)) else "*"
    buffer = tensor.buffer
    place = ""
    if buffer is not None:
        place = f"@{buffer.offset}" if buffer.slot == "arena" else f" {buffer.slot}"
    return f"{tensor.kind}[{','.join(str(size) for size in tensor.shape)}]{layout}{place}"


def _operand(value: Tensor | HostObject) -> str:
    return _tensor(value) if isinstance(value, Tensor) else f"object {value.slot}"


def _columns(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]

    def lines() -> Iterator[str]:
        for row in (header, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()

    return "\n".join(lines())
