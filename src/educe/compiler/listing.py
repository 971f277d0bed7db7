"""Programs as text: their launches, their memory, their code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from educe.compiler import jit
from educe.compiler.kernel import Kernel
from educe.compiler.program import HostObject, HostStep, Launch, Segment
from educe.compiler.target import Target
from educe.compiler.tensor import Buffer, Tensor, dense_strides, same_strides
from educe.limits import format_bytes

_GAP = "  "
# No cell is cut shorter than this.
_LEAST = 8


def program_text(segments: Iterable[Segment], width: int | None = None) -> str:
    """Return the launches and host steps in order, one a line: what it is, which node, output, inputs.

    Args:
        segments: The program.
        width: Columns that a line may take; cells are cut short to fit. No bound if absent.
    """
    rows = []
    for number, each in enumerate(_steps(segments)):
        if isinstance(each, Launch):
            outputs = ", ".join(_tensor(tensor) for tensor in each.outputs)
            inputs = ", ".join(_tensor(tensor) for tensor in each.inputs)
            rows.append((str(number), each.kernel.template, each.node, outputs, inputs, _ending(each)))
        else:
            inputs = ", ".join(_operand(value) for value in each.inputs if value is not None)
            rows.append((str(number), _kind(each), each.node, each.operator, inputs, ""))
    node = _Column("node", keeps_end=True)
    others = (_Column(name) for name in ("output", "inputs", "ends with"))
    return _columns((_Column("#", to_right=True), _Column("kernel"), node, *others), rows, width)


@dataclass
class _Held:
    """What is known of a buffer of an arena: the steps that write it first and read it last."""

    first: int
    last: int
    maker: str
    reader: str


def memory_text(segments: Iterable[Segment], width: int | None = None) -> str:
    """Return the buffers of each arena, by their place: between which steps they live, and for which nodes.

    Args:
        segments: The program.
        width: Columns that a line may take; cells are cut short to fit. No bound if absent.
    """
    segments = list(segments)
    held = _held(segments)
    rows, totals = [], []
    for segment in segments:
        own = {buffer: life for buffer, life in held.items() if buffer.segment == segment.number}
        for buffer, life in sorted(own.items(), key=lambda item: (item[0].offset, item[1].first)):
            place = (str(segment.number), f"{buffer.offset:,}", format_bytes(buffer.size_bytes))
            rows.append((*place, f"{life.first}-{life.last}", life.maker, life.reader))
        totals.append(_total(segment, own))
    amounts = (_Column(name, to_right=True) for name in ("arena", "offset", "size", "life"))
    nodes = (_Column(name, keeps_end=True) for name in ("made by", "last read by"))
    return "\n".join([_columns((*amounts, *nodes), rows, width), *totals])


def _total(segment: Segment, held: Mapping[Buffer, _Held]) -> str:
    size_bytes = sum(buffer.size_bytes for buffer in held)
    return (
        f"arena {segment.number}: {format_bytes(segment.arena_bytes)}, buffers: {len(held)} of together "
        f"{format_bytes(size_bytes)}, scratch memory: {format_bytes(segment.scratch_bytes)} for each thread"
    )


def _held(segments: Iterable[Segment]) -> dict[Buffer, _Held]:
    """Return every buffer that lies in an arena, in the order of their first use."""
    found: dict[Buffer, _Held] = {}
    for number, each in enumerate(_steps(segments)):
        label, tensors, written = _touched(each)
        for place, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor) or tensor.buffer is None or tensor.buffer.slot != "arena":
                continue
            life = found.setdefault(tensor.buffer, _Held(number, number, label, ""))
            life.last = number
            if place >= written:
                life.reader = label
    return found


def _touched(step: Launch | HostStep) -> tuple[str, Sequence[object], int]:
    """Return what a step is called, its tensors, and how many of them it writes, which are the first."""
    if isinstance(step, Launch):
        return f"{step.node} ({step.kernel.template})", step.tensors, step.num_outputs
    return f"{step.node} ({_kind(step)})", step.inputs, 0


def _steps(segments: Iterable[Segment]) -> Iterator[Launch | HostStep]:
    for segment in segments:
        yield from segment.launches
        if segment.step is not None:
            yield segment.step


def _kind(step: HostStep) -> str:
    return "host read" if step.call is None else "host call"


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


@dataclass(frozen=True)
class _Column:
    """A column of a table: its name, the side of its cells, and which end of them is kept."""

    name: str
    to_right: bool = False
    keeps_end: bool = False

    def cell(self, text: str, width: int) -> str:
        """Return `text` as a cell of `width`."""
        if len(text) > width:
            text = f"…{text[len(text) - width + 1 :]}" if self.keeps_end else f"{text[: width - 1]}…"
        return text.rjust(width) if self.to_right else text.ljust(width)


def _columns(columns: Sequence[_Column], rows: Sequence[tuple[str, ...]], width: int | None) -> str:
    """Return a table, whose widest cells are cut short to a terminal's `width`, if there is one."""
    lines = [tuple(column.name for column in columns), *rows]
    widths = [max(len(cell) for cell in cells) for cells in zip(*lines, strict=True)]
    while width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width and max(widths) > _LEAST:
        widths[widths.index(max(widths))] -= 1
    cells = (
        [column.cell(*each) for column, each in zip(columns, zip(line, widths, strict=True), strict=True)]
        for line in lines
    )
    return "\n".join(_GAP.join(line).rstrip() for line in cells)
