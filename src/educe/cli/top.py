"""``educe top``: what a server does, as it does it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from educe.cli.remote import RemoteOptions, UrlArgument
from educe.cli.screen import format_count, output, print_table
from educe.errors import InputError
from educe.limits import format_bytes

EXAMPLES = """
[bold]Examples[/]\n
educe top localhost:8000\n
educe top localhost:8000 --once
"""

Samples = dict[str, dict[tuple[str, ...], float]]
"""Numbers by their metric's name, and the values of their labels but the bounds of histograms' classes."""

_COLUMNS = ("ok", "errors", "p50", "p99", "rows", "wait", "run", "tokens", "memory")
_RATES = ("ok", "errors", "tokens")


def command(
    url: UrlArgument,
    *,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="X", help="Seconds between looks; 1 if absent.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table, and end.")] = False,
    remote: RemoteOptions,
) -> None:
    """Show what the server at URL does: requests, times, batches, tokens, memory; Ctrl-C ends it."""
    address = remote.address(url)

    def look() -> Look:
        return read(address.read("GET", "/metrics").decode("utf-8", "replace"), url)

    before = look()
    if once:
        print_table(table_of(before, Look(before.moment - 1.0, {}, {})))
        return
    with Live(console=output(), screen=False, auto_refresh=False, vertical_overflow="visible") as live:
        try:
            while True:
                time.sleep(interval)
                now = look()
                hint = Text(f"{url}  Ctrl-C ends it", style="dim")
                live.update(Group(table_of(now, before), hint), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


@dataclass(frozen=True)
class Look:
    """What a server has told.

    Attributes:
        moment: When, in seconds of a clock that only goes on.
        samples: Its numbers.
        classes: The classes of its histograms: by name and labels, the bounds with the counts as far as them.
    """

    moment: float
    samples: Samples
    classes: dict[tuple[str, ...], dict[float, float]] = field(default_factory=dict)

    def value(self, name: str, *labels: str) -> float:
        """Return a number; 0 if it is not there."""
        return self.samples.get(name, {}).get(labels, 0.0)


def read(text: str, url: str) -> Look:
    """Return what stands in Prometheus' text format.

    Raises:
        InputError: the text is of another form.
    """
    from prometheus_client.parser import text_string_to_metric_families

    samples: Samples = {}
    classes: dict[tuple[str, ...], dict[float, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                bound = labels.pop("le", None)
                key = tuple(labels.values())
                if bound is None:
                    samples.setdefault(name, {})[key] = value
                else:
                    classes.setdefault((name, *key), {})[float(bound)] = value
    except ValueError as fault:
        raise InputError(f"its metrics cannot be read: {fault}", path=url) from None
    if "educe_model_ready" not in samples:
        raise InputError("what answers there is no server of Educe", path=url)
    return Look(time.monotonic(), samples, classes)


def table_of(now: Look, before: Look) -> Table:
    """Return what has happened between two looks, a row for each model.

    Rates are those of that time; if the first look is an empty one, there are counts since the server began
    in their place.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("model", overflow="fold")
    for column in _COLUMNS:
        per = "/s" if before.samples and column in _RATES else ""
        table.add_column(column + per, justify="right", no_wrap=True)
    models = now.samples["educe_model_ready"]
    for (name,), is_ready in models.items():
        table.add_row(name if is_ready else f"{name} (not loaded)", *_cells(name, now, before))
    resident = now.value("process_resident_memory_bytes")
    table.caption = f"process {format_bytes(round(resident))}" if resident else None
    table.caption_justify = "left"
    return table


def _cells(name: str, now: Look, before: Look) -> Iterable[str]:
    seconds = max(now.moment - before.moment, 1e-6)

    def growth(metric: str, *labels: str) -> float:
        return now.value(metric, name, *labels) - before.value(metric, name, *labels)

    def rate(number: float) -> str:
        return format_count(number / seconds if before.samples else number)

    outcomes = [key for key in now.samples.get("educe_requests_total", {}) if key[0] == name]
    errors = sum(growth("educe_requests_total", outcome) for _, outcome in outcomes if outcome != "ok")
    runs = growth("educe_batch_rows_count")
    generates = (name,) in now.samples.get("educe_tokens_total", {})
    yield rate(growth("educe_requests_total", "ok"))
    yield rate(errors)
    for share in (0.5, 0.99):
        found = quantile(_classes("educe_request_seconds_bucket", name, now, before), share)
        yield "-" if found is None else _brief(found)
    yield f"{growth('educe_batch_rows_sum') / runs:.1f}" if runs else "-"
    yield f"{now.value('educe_waiting_requests', name):.0f}"
    yield f"{now.value('educe_running_requests', name):.0f}"
    yield rate(growth("educe_tokens_total")) if generates else "-"
    yield format_bytes(round(now.value("educe_model_memory_bytes", name)))


def _brief(seconds: float) -> str:
    """Return a time with three digits, so that a table fits into 80 columns."""
    factor, unit = (1e6, "µs") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1.0, "s")
    return f"{float(f'{seconds * factor:.3g}'):g} {unit}"


def _classes(metric: str, name: str, now: Look, before: Look) -> dict[float, float]:
    earlier = before.classes.get((metric, name), {})
    found = now.classes.get((metric, name), {})
    return {bound: count - earlier.get(bound, 0.0) for bound, count in found.items()}


def quantile(classes: dict[float, float], share: float) -> float | None:
    """Return a quantile, on a line within its class; None if there are no values.

    Args:
        classes: For each upper bound, how many values are not above it.
        share: Which quantile, from 0 to 1.
    """
    bounds = sorted(classes)
    if not bounds or not classes[bounds[-1]]:
        return None
    rank = share * classes[bounds[-1]]
    if classes[bounds[0]] >= rank:
        return bounds[0] * rank / classes[bounds[0]]
    for low, high in pairwise(bounds):
        if classes[high] >= rank:
            part = (rank - classes[low]) / (classes[high] - classes[low])
            return low if high == float("inf") else low + part * (high - low)
    return bounds[-1]
