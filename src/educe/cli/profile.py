"""``educe profile``: where a run spends its time."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from educe import api
from educe.cli import options
from educe.cli.chart import SUFFIXES, save_bars
from educe.cli.feeds import feeds_of
from educe.cli.screen import format_count, format_seconds, output, print_json, print_table, working
from educe.engines.native import NativeExecutable
from educe.errors import OptionError
from educe.settings import resolve_threads

if TYPE_CHECKING:
    from educe.bench.peaks import Peaks
    from educe.bench.profile import KernelTime, Profile

EXAMPLES = """
[bold]Examples[/]\n
educe profile zoo/mobilenet_v2 zoo/images/zebra.jpeg\n
educe profile zoo/yolox_nano --threads 1 --chart yolox.svg --trace yolox.json
"""
_SLOWEST = 25
_STEPS = 3


def command(
    model: options.ModelArgument,
    data: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="An input; random numbers if absent.")
    ] = None,
    threads: options.ThreadsOption = None,
    card: options.CardOption = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Time of the runs.")] = 2.0,
    chart: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="Save a chart, as .svg or .png.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE", help="Save a trace, for chrome://tracing or Perfetto."),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Show the time of every kernel of MODEL, and how much of this machine's peak it reaches."""
    from educe.bench.peaks import measure_peaks
    from educe.bench.profile import chrome_trace, profile

    _check_files(chart, trace)
    loaded = api.load(model, card=card)
    _, feeds = next(feeds_of(loaded, None if data is None else [data]))
    with working(f"compiling {loaded.name}"):
        executable = api.compile(loaded, engine="native", threads=threads)
        assert isinstance(executable, NativeExecutable)
        executable.program(feeds)
    with working("measuring what this machine can do"):
        peaks = measure_peaks(resolve_threads(threads))
    with working(f"running {loaded.name}"):
        found = profile(executable, feeds, seconds)
    if trace is not None:
        with _writing(trace):
            trace.write_text(jsonlib.dumps(chrome_trace(found, loaded.name)))
    if chart is not None:
        with _writing(chart):
            save_bars(chart, _title(loaded.name, found), _bars(found, peaks))
    if json:
        for kernel in found.kernels:
            print_json({**msgspec.to_builtins(kernel), **_rates(kernel, peaks)})
        return
    _print(loaded.name, found, peaks)


def _check_files(chart: Path | None, trace: Path | None) -> None:
    if chart is not None and chart.suffix not in SUFFIXES:
        raise OptionError(f"a chart is not saved as {chart.name!r}", remedy="name a file .svg or .png")
    for path in (chart, trace):
        if path is not None and path.is_dir():
            raise OptionError("cannot be written: it is a folder", path=path, remedy="name a file")
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(
                "cannot be written: its folder does not exist", path=path, remedy="make the folder first"
            )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        cause = f"cannot be written: {fault.strerror or fault}"
        raise OptionError(cause, path=path, remedy="name another file") from None


def _title(name: str, found: Profile) -> str:
    return (
        f"{name}: {format_seconds(found.total_seconds)} a run (median of {found.runs}), "
        f"{format_seconds(found.kernel_seconds)} of it in {len(found.kernels)} kernels"
    )


def _rates(kernel: KernelTime, peaks: Peaks) -> dict[str, Any]:
    seconds = max(kernel.seconds, 1e-9)
    return {
        "gflops": kernel.flops / seconds / 1e9,
        "share_of_peak": kernel.flops / seconds / 1e9 / peaks.fma_gflops,
        "gigabytes_per_second": kernel.bytes / seconds / 1e9,
        "share_of_bandwidth": kernel.bytes / seconds / 1e9 / peaks.read_gigabytes_per_second,
    }


def _slowest(found: Profile) -> list[KernelTime]:
    return sorted(found.kernels, key=lambda kernel: -kernel.seconds)[:_SLOWEST]


def _bars(found: Profile, peaks: Peaks) -> list[tuple[str, float, str]]:
    rows = []
    for kernel in _slowest(found):
        rates = _rates(kernel, peaks)
        text = (
            f"{format_seconds(kernel.seconds)}  {rates['share_of_peak']:.0%} of FLOP/s, "
            f"{rates['share_of_bandwidth']:.0%} of bytes/s"
        )
        rows.append((f"{kernel.kernel} {kernel.node}"[-60:], kernel.seconds, text))
    return rows


def _print(name: str, found: Profile, peaks: Peaks) -> None:
    table = Table(title=_title(name, found), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", overflow="fold", min_width=16)
    table.add_column("kernel", no_wrap=True)
    for column in ("time", "share", "FLOP/s", "of peak", "bytes/s", "of peak"):
        table.add_column(column, justify="right", no_wrap=True)
    for kernel in _slowest(found):
        rates = _rates(kernel, peaks)
        table.add_row(
            kernel.node,
            kernel.kernel,
            format_seconds(kernel.seconds),
            f"{kernel.seconds / max(found.kernel_seconds, 1e-12):.1%}",
            format_count(rates["gflops"] * 1e9),
            f"{rates['share_of_peak']:.0%}",
            format_count(rates["gigabytes_per_second"] * 1e9),
            f"{rates['share_of_bandwidth']:.0%}",
        )
    console = output()
    print_table(table)
    hidden = len(found.kernels) - _SLOWEST
    if hidden > 0:
        console.print(f"and {hidden} kernels that take less")
    for line in _legend(found, peaks):
        console.print(f"[dim]{escape(line)}[/]")


def _legend(found: Profile, peaks: Peaks) -> list[str]:
    """Return what the numbers mean, a line each."""
    outside = found.outside_seconds
    share = outside / max(found.total_seconds, 1e-12)
    steps = ", ".join(found.host_steps[:_STEPS])
    more = f" and {len(found.host_steps) - _STEPS} more" if len(found.host_steps) > _STEPS else ""
    threads = "1 thread" if peaks.threads == 1 else f"{peaks.threads} threads"
    peak = f"{peaks.fma_gflops:.0f} GFLOP/s f32, {peaks.read_gigabytes_per_second:.1f} GB/s from memory"
    return [
        f"outside of kernels: {format_seconds(outside)} ({share:.0%}): Python, memory for the outputs, "
        + f"what else the machine does{f'; on the host: {steps}{more}' if steps else ''}",
        "share: of the time in kernels",
        f"of peak: of what {threads} can do at most here: {peak}",
        "above 100%: bytes that came from the caches, or numbers narrower than f32",
    ]
