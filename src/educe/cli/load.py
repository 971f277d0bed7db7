"""``educe load``: what a server does under load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from educe.cli import options
from educe.cli.chart import SUFFIXES
from educe.cli.curves import save_curves
from educe.cli.options import OptionGroup
from educe.cli.remote import RemoteOptions, UrlArgument
from educe.cli.screen import counted, errors, format_seconds, output, print_json, print_table, working
from educe.errors import InputError, OptionError

if TYPE_CHECKING:
    from educe.bench.load import Load, Plan, Target
    from educe.bench.load_targets import Address

EXAMPLES = """
[bold]Examples[/]\n
educe load localhost:8000 --model mobilenet_v2 --rate 50,100,200 --within-ms 50\n
educe load localhost:8000 --model mobilenet_v2 --file zoo/images/zebra.jpeg --plot load.svg\n
educe load localhost:8000 --model stories260K --prompt "Once upon a time" --rate 5 --json
"""

_FILE_BYTES = 256 * 2**20


def _rates(text: str) -> list[float]:
    """Return the rates in a list with commas."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate <= 1e6 for rate in rates):
        raise typer.BadParameter(f"{text!r} has something that is no number of requests a second")
    return rates


@dataclass(frozen=True, kw_only=True)
class PlanOptions(OptionGroup):
    """How much is asked, and how long."""

    rate: Annotated[
        Any,
        typer.Option("--rate", parser=_rates, metavar="N,...", help="Requests a second, one after another."),
    ] = "10"
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for each rate.")] = 10.0
    warmup: Annotated[
        float, typer.Option("--warmup", min=0, help="Seconds before each, of which nothing is counted.")
    ] = 1.0
    within_ms: Annotated[
        float | None,
        typer.Option("--within-ms", min=0, metavar="X", help="The longest time of an answer that is good."),
    ] = None
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.01, help="Seconds after which a request is given up.")
    ] = 30.0
    connections: Annotated[
        int, typer.Option("--connections", min=1, metavar="N", help="Most connections.")
    ] = 512
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of arrivals and numbers.")] = 0

    def plan(self, rate: float) -> Plan:
        """Return the plan for a rate."""
        from educe.bench.load import Plan

        within = math.inf if self.within_ms is None else self.within_ms / 1000
        return Plan(rate, self.seconds, self.warmup, within, self.timeout, self.connections, self.seed)


@dataclass(frozen=True, kw_only=True)
class RequestOptions(OptionGroup):
    """What is asked."""

    file: Annotated[
        Path | None,
        typer.Option("--file", parser=options.named_path, metavar="FILE", help="Send this file's content."),
    ] = None
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Have texts written after this one.")
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a message.")] = False
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="Most tokens of a text.")
    ] = 32
    rows: Annotated[
        int, typer.Option("--rows", min=1, metavar="N", help="Rows of each request's random tensors.")
    ] = 1

    def target(self, address: Address, model: str, seed: int) -> Target:
        """Return what asks a model for it."""
        from educe.bench import load_targets

        if self.file is not None:
            return load_targets.file(address, model, _content(self.file))
        if self.prompt is not None:
            return load_targets.texts(address, model, self.prompt, self.max_tokens, is_chat=self.chat)
        return load_targets.tensors(address, model, self.rows, seed)


def command(
    url: UrlArgument,
    *,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model; the only one if absent.")
    ] = None,
    planned: PlanOptions,
    asked: RequestOptions,
    remote: RemoteOptions,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", parser=options.named_path, metavar="FILE", help="Save a chart, as .svg or .png."
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Load the server at URL as many clients would: requests come by chance, and never wait for others."""
    from educe.bench.load import run_load
    from educe.bench.load_targets import only_model

    if asked.file is not None and asked.prompt is not None:
        raise OptionError("--file and --prompt exclude each other", place="--prompt")
    if plot is not None and plot.suffix not in SUFFIXES:
        raise OptionError(f"a chart is {' or '.join(SUFFIXES)}", place="--plot", path=plot)
    address = remote.address(url)
    name = model or only_model(address)
    target = asked.target(address, name, planned.seed)
    found: list[Load] = []
    for rate in planned.rate:
        try:
            with working(f"{rate:g} requests a second for {planned.seconds + planned.warmup:g} s"):
                found.append(run_load(target, planned.plan(rate)))
        except OSError as fault:
            raise InputError(f"cannot be reached: {fault}", path=url, remedy="is it up?") from None
        if json:
            print_json({"model": name, "within_ms": planned.within_ms, **msgspec.to_builtins(found[-1])})
    if not json:
        _print(name, found, planned.within_ms)
    if plot is not None:
        _plot(plot, name, found)
    if not any(each.num_ok for each in found):
        raise typer.Exit(1)


def _content(path: Path) -> bytes:
    from educe.files import open_regular

    with open_regular(path, error=InputError) as opened:
        content: bytes = opened.read(_FILE_BYTES)
    return content


def _print(name: str, found: list[Load], within_ms: float | None) -> None:
    table = Table(title=name, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    bound = "good/s" if within_ms is None else f"within {within_ms:g} ms/s"
    for column in ("rate/s", "sent/s", "ok/s", bound, "p50", "p90", "p99", "p99.9", "errors"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        quantiles = (each.latency.get(quantile) for quantile in ("p50", "p90", "p99", "p99.9"))
        times = ("-" if seconds is None else format_seconds(seconds) for seconds in quantiles)
        table.add_row(
            *(f"{number:,.1f}" for number in (each.rate, each.sent_rate, each.rate_ok, each.goodput)),
            *times,
            f"{each.num_requests - each.num_ok:,}",
        )
    print_table(table)
    for each in found:
        for line in _remarks(each):
            output().print(f"at {each.rate:g}/s: {line}", markup=False)
        if each.late and each.late["p50"] > max(0.002, 0.5 * each.latency.get("p50", 0.0)):
            errors().print(
                f"at {each.rate:g}/s requests were sent {format_seconds(each.late['p50'])} late: "
                "they waited for connections, or this machine cannot send so many",
                markup=False,
            )


def _remarks(found: Load) -> list[str]:
    """Return what else there is to say of a rate."""
    lines = []
    if found.errors:
        lines.append(", ".join(f"{kind}: {count:,}" for kind, count in found.errors.items()))
        lines += [f"{kind} says: {text}" for kind, text in found.messages.items()]
    if found.refusal:
        often = counted(found.num_retry_after, "time")
        lines.append(f"refused in {_middle(found.refusal)}, {often} with Retry-After")
    if found.first_token:
        text = f"first token {_middle(found.first_token)}"
        if found.between_tokens:
            text += f", between tokens {_middle(found.between_tokens)}"
        lines.append(f"{counted(found.num_tokens, 'token')}: {text}")
    return lines


def _middle(quantiles: Mapping[str, float]) -> str:
    return f"{format_seconds(quantiles['p50'])} (p99 {format_seconds(quantiles['p99'])})"


def _plot(path: Path, name: str, found: list[Load]) -> None:
    curves = {
        quantile: [(each.rate, each.latency[quantile] * 1e3) for each in found if each.latency]
        for quantile in ("p50", "p90", "p99")
    }
    save_curves(path, f"{name}: latency in ms over requests a second", curves)
    errors().print(f"chart in {path}", markup=False)
