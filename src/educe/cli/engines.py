"""``educe engines``: what is installed."""

from __future__ import annotations

from rich.table import Table

from educe.cli import options
from educe.cli.screen import print_json, print_table, print_warning
from educe.engines import engines
from educe.settings import ENGINE

EXAMPLES = """
[bold]Example[/]\n
educe engines
"""


def command(json: options.JsonOption = False) -> None:
    """List the engines with their versions and devices, and say which is the default."""
    rows = [
        {
            "name": engine.name,
            "version": engine.version(),
            "devices": engine.devices() if engine.version() is not None else [],
            "default": engine.name == ENGINE.value(),
        }
        for engine in engines()
    ]
    if not any(row["default"] for row in rows):
        print_warning(f"{ENGINE.variable}={ENGINE.value()} is none of them")
    if json:
        for row in rows:
            print_json(row)
        return
    table = Table()
    for name in ("engine", "version", "devices", "default"):
        table.add_column(name, no_wrap=name != "devices", min_width=10)
    for row in rows:
        devices = row["devices"]
        assert isinstance(devices, list)
        table.add_row(
            str(row["name"]),
            str(row["version"] or "not installed"),
            ", ".join(devices),
            "yes" if row["default"] else "",
        )
    print_table(table)
