"""``educe verify``: how far two engines are apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from educe import api
from educe.cli import options
from educe.cli.feeds import feeds_of
from educe.cli.screen import errors, output, print_json, print_table, working
from educe.engines import compile, get
from educe.errors import OptionError

if TYPE_CHECKING:
    from educe.bench.compare import Comparison, FirstDifference

EXAMPLES = """
[bold]Examples[/]\n
educe verify zoo/mnist --against reference\n
educe verify zoo/gtsrb --against reference --data zoo/gtsrb/inputs/14_stop.png
"""
_DISAGREE = 1


def command(
    model: options.ModelArgument,
    against: Annotated[
        str, typer.Option("--against", metavar="ENGINE", help="The engine that counts as right.")
    ],
    engine: options.EngineOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="INPUT", help="Inputs, as predict takes them; random numbers if absent."
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, help="Largest relative difference of engines that agree."),
    ] = None,
    threads: options.ThreadsOption = None,
    card: options.CardOption = None,
    json: options.JsonOption = False,
) -> None:
    """Compare MODEL's outputs on two engines; if they part, name the first node, and exit with 1."""
    from educe.bench.compare import DEFAULT_TOLERANCE, compare, first_difference

    loaded = api.load(model, card=card)
    chosen = get(engine).name
    tolerance = DEFAULT_TOLERANCE if tolerance is None else tolerance
    if chosen == get(against).name:
        raise OptionError(f"{chosen} is compared with itself", remedy="name another engine with --against")
    with working(f"compiling {loaded.name}"):
        ours, theirs = (compile(loaded, each, threads=threads) for each in (chosen, against))
    agree = True
    for name, feeds in feeds_of(loaded, data):
        first = None
        with working(f"running {loaded.name}"):
            found = compare(ours, theirs, feeds, tolerance=tolerance)
        if not found.agree:
            agree = False
            with working("looking for the first node at which they part"):
                first = first_difference(loaded, chosen, against, feeds, tolerance=tolerance, threads=threads)
        if json:
            print_json({"model": loaded.name, **_fields(name, found, first)})
        else:
            _print(name, found, first)
    if not agree:
        raise typer.Exit(_DISAGREE)


def _fields(name: str, found: Comparison, first: FirstDifference | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"input": name, "agree": found.agree, **msgspec.to_builtins(found)}
    if first is not None:
        fields["first_difference"] = msgspec.to_builtins(first)
    return fields


def _print(name: str, found: Comparison, first: FirstDifference | None) -> None:
    console = output()
    verdict = "[green]agree[/]" if found.agree else "[bold red]differ[/]"
    console.print(
        f"{escape(name)}: {found.engine} and {found.against} {verdict} (to {found.tolerance:g} relative)"
    )
    print_table(_table(found))
    if first is not None:
        errors().print(
            f"they part first at node {escape(first.node)} ({first.operator}): "
            f"{first.difference.reason or f'{first.difference.max_relative:.3g} relative'}"
        )


def _table(found: Comparison) -> Table:
    table = Table()
    table.add_column("output", overflow="fold", min_width=12)
    for name in ("max difference", "mean difference", "relative"):
        table.add_column(name, no_wrap=True)
    has_reasons = any(each.reason for each in found.differences)
    if has_reasons:
        table.add_column("reason")
    for each in found.differences:
        numbers = (f"{x:.3g}" for x in (each.max_absolute, each.mean_absolute, each.max_relative))
        table.add_row(escape(each.output), *numbers, *([each.reason or ""] if has_reasons else []))
    return table
