"""``educe bench``: engines side by side in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from educe import api, engines
from educe.cli import options
from educe.cli.screen import errors, format_seconds, output, print_error, print_json, print_table, working
from educe.engines.base import Executable
from educe.errors import EduceError, OptionError
from educe.limits import format_bytes
from educe.model import Model
from educe.settings import resolve_threads

if TYPE_CHECKING:
    from educe.bench.measure import Measurement

EXAMPLES = """
[bold]Examples[/]\n
educe bench zoo/mobilenet_v2 --threads 1\n
educe bench zoo/mnist zoo/kws --engine native --against onnxruntime,openvino --json
"""


def command(
    models: Annotated[
        list[Path],
        typer.Argument(parser=options.named_path, metavar="MODEL", help="Model files, or their folders."),
    ],
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="NAME", help="The engine that is measured; the default one if absent."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="A,B,...", help="The engines that it is measured against."),
    ] = None,
    threads: options.ThreadsOption = None,
    batch: options.BatchOption = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Time for each engine.")] = 2.0,
    memory: Annotated[
        bool,
        typer.Option("--memory/--no-memory", help="Measure peak memory and start, in a process of its own."),
    ] = True,
    json: options.JsonOption = False,
) -> None:
    """Time MODEL on random input: engines take turns in one run, after their answers were compared."""
    names = _engine_names(engine, against)
    exit_status = 0
    for path in models:
        try:
            with working(f"measuring {path}"):
                rows = _bench(path, names, threads, batch or 1, seconds, memory)
        except EduceError as error:
            print_error(error.located(path))
            exit_status = max(exit_status, error.exit_status)
            continue
        if json:
            for row in rows:
                print_json(row)
        else:
            _print(path, rows)
    if exit_status:
        raise typer.Exit(exit_status)


def _engine_names(engine: str | None, against: str | None) -> list[str]:
    measured = engines.get().name if engine is None else engine
    chosen = [*measured.split(","), *(against.split(",") if against else ())]
    names = [engines.get(name.strip()).name for name in chosen]
    if len(set(names)) < len(names):
        raise OptionError(f"an engine is named twice: {', '.join(names)}", remedy="name each once")
    return names


def _bench(
    path: Path, names: list[str], threads: int | None, batch: int, seconds: float, memory: bool
) -> list[dict[str, Any]]:
    from educe.bench.cold import Request, measure_cold
    from educe.bench.feeds import check_batch, random_feeds
    from educe.bench.measure import measure

    model = api.load(path)
    check_batch(model, batch)
    feeds = random_feeds(model, batch)
    executables, refusals = _compile(model, names, threads)
    found = measure(executables, feeds, batch=batch, seconds=seconds)
    facts = {"model": model.name, "sha256": model.sha256, "batch": batch, "threads": resolve_threads(threads)}
    rows = []
    for each in (*found, *refusals):
        row = {**facts, "version": engines.get(each.engine).version(), **msgspec.to_builtins(each)}
        if memory and each.error is None:
            cold = measure_cold(Request(str(path), each.engine, batch, options={"threads": threads}))
            if cold is not None:
                row["peak_memory_bytes"] = cold.growth_bytes
                row["start_seconds"] = cold.start_seconds
        rows.append(row)
    return rows


def _compile(
    model: Model, names: list[str], threads: int | None
) -> tuple[dict[str, Executable], list[Measurement]]:
    from educe.bench.measure import Measurement

    executables, errors = {}, {}
    for name in names:
        try:
            executables[name] = engines.compile(model, name, threads=threads)
        except EduceError as error:
            errors[name] = error
    if not executables:
        raise errors[names[0]]
    refusals = [Measurement(name, name, error=str(error)) for name, error in errors.items()]
    return executables, refusals


def _print(path: Path, rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    title = f"{first['model']} ({path}): batch {first['batch']}, threads {first['threads']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine", no_wrap=True)
    for name in ("min", "median", "p99", "items/s", "ratio", "memory", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if "error" in row:
            errors().print(f"{row['engine']}: {row['error']}", markup=False)
            continue
        memory = row.get("peak_memory_bytes")
        table.add_row(
            row["engine"],
            format_seconds(row["min_seconds"]),
            format_seconds(row["median_seconds"]),
            format_seconds(row["p99_seconds"]),
            _rate(row["items_per_second"]),
            f"{row['ratio']:.2f}",
            "" if memory is None else format_bytes(memory),
            f"{row['difference']:.0e}",
        )
    print_table(table)
    timed = [row for row in rows if "error" not in row]
    if len(timed) > 1:
        ratios = ", ".join(f"{row['ratio']:.2f} times as fast as {row['engine']}" for row in timed[1:])
        output().print(f"{timed[0]['engine']} is {ratios}", markup=False)


def _rate(items_per_second: float) -> str:
    return f"{items_per_second:,.0f}" if items_per_second >= 100 else f"{items_per_second:.3g}"
