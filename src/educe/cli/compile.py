"""``educe compile``: what the compiler makes of a model."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from educe import api
from educe.cli import options
from educe.cli.screen import format_seconds, output, print_json, printable, terminal_width, working
from educe.engines.native import NativeExecutable
from educe.limits import format_bytes

if TYPE_CHECKING:
    from educe.compiler.program import Segment

EXAMPLES = """
[bold]Examples[/]\n
educe compile zoo/mobilenet_v2\n
educe compile zoo/mobilenet_v2 --show program\n
educe compile zoo/mnist --show asm
"""


class Shown(str, Enum):
    """What can be shown of a compiled model."""

    program = "program"
    memory = "memory"
    llvm = "llvm"
    asm = "asm"


def command(
    model: options.ModelArgument,
    show: Annotated[
        Shown | None, typer.Option("--show", help="Print the launches, the memory plan, or the code.")
    ] = None,
    threads: options.ThreadsOption = None,
    batch: options.BatchOption = None,
    json: options.JsonOption = False,
) -> None:
    """Compile MODEL for this machine, and say what came of it; sizes that are unknown are taken as small."""
    from educe.bench.feeds import check_batch, random_feeds
    from educe.compiler.library import library
    from educe.compiler.target import host_target

    loaded = api.load(model)
    check_batch(loaded, batch or 1)
    made = library(host_target()).num_made
    start = time.perf_counter()
    with working(f"compiling {loaded.name}"):
        executable = api.compile(loaded, engine="native", threads=threads)
        assert isinstance(executable, NativeExecutable)
        segments = executable.program(random_feeds(loaded, batch or 1))
    seconds = time.perf_counter() - start
    if show is not None:
        print(printable(_listing(show, segments)))
        return
    launches = [launch for segment in segments for launch in segment.launches]
    steps = [segment.step for segment in segments if segment.step is not None]
    facts: dict[str, Any] = {
        "model": loaded.name,
        "target": host_target().name,
        "launches": len(launches),
        "kernels": len({launch.kernel for launch in launches}),
        "kernels_made": library(host_target()).num_made - made,
        "host_calls": [f"{step.operator} {step.node}" for step in steps if step.call is not None],
        "arena_bytes": sum(segment.arena_bytes for segment in segments),
        "constant_bytes": executable.executor.code.constants.size_bytes,
        "seconds": seconds,
    }
    if json:
        print_json(facts)
        return
    console = output()
    others = ", other sizes' included" if facts["kernels_made"] > facts["kernels"] else ""
    console.print(
        f"{loaded.name}: {facts['launches']} launches of {facts['kernels']} kernels for {facts['target']}, "
        f"in {format_seconds(seconds)} ({facts['kernels_made']} kernels made now{others}); "
        f"arena {format_bytes(facts['arena_bytes'])}, constants {format_bytes(facts['constant_bytes'])}",
        markup=False,
    )
    for call in facts["host_calls"]:
        console.print(f"runs on the host: {call}", markup=False)


def _listing(show: Shown, segments: list[Segment]) -> str:
    from educe.compiler import listing
    from educe.compiler.target import host_target

    if show is Shown.program:
        return listing.program_text(segments, terminal_width())
    if show is Shown.memory:
        return listing.memory_text(segments, terminal_width())
    return listing.code_text(segments, host_target(), show is Shown.asm)
