"""``educe doctor``: what this machine is and can do, and what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import msgspec
from rich.table import Table

from educe import __version__, settings
from educe.bench.peaks import machine, measure_peaks
from educe.cli import options
from educe.cli.screen import output, print_json
from educe.engines import engines
from educe.limits import DEFAULT_LIMITS, format_bytes
from educe.machine import usable_cores

EXAMPLES = """
[bold]Example[/]\n
educe doctor
"""
_EXTRAS = {
    "video": ("av",),
    "audio": ("soundfile", "soxr"),
    "text": ("tokenizers",),
    "openvino": ("openvino",),
}


def command(json: options.JsonOption = False) -> None:
    """Show the machine, its measured peaks, the libraries installed, the settings and the limits in force."""
    facts = _facts()
    if json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(facts):
        table.add_row(name, text)
    output().print(table, markup=False)


def _facts() -> dict[str, Any]:
    return {
        "educe": __version__,
        "machine": msgspec.to_builtins(machine()),
        "peaks": [msgspec.to_builtins(measure_peaks(threads)) for threads in _thread_counts()],
        "engines": {engine.name: engine.version() for engine in engines()},
        "missing_extras": [name for name, modules in _EXTRAS.items() if not all(map(_installed, modules))],
        "settings": {setting.variable: setting.value() for setting in settings.ALL},
        "limits": dataclasses.asdict(DEFAULT_LIMITS),
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    found = facts["machine"]
    quota = f", quota {found['quota_cores']:g} cores" if found.get("quota_cores") else ""
    memory = format_bytes(found["memory_bytes"]) if found.get("memory_bytes") else "unknown"
    rows = [
        ("educe", facts["educe"]),
        ("processor", f"{found['cpu']}, {found['cores']} usable cores{quota}"),
        ("instructions", " ".join(found["features"])),
        ("memory", memory),
        *(("peak", _peak(peaks)) for peaks in facts["peaks"]),
        ("system", f"{found['system']}, Python {found['python']}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in found["libraries"].items())),
    ]
    rows += [("engine", f"{name} {version or 'not installed'}") for name, version in facts["engines"].items()]
    rows += [("missing", f"pip install 'educe[{extra}]'") for extra in facts["missing_extras"]]
    rows += [("setting", f"{name}={value}") for name, value in facts["settings"].items()]
    return rows + [("limit", f"{name} {_amount(name, value)}") for name, value in facts["limits"].items()]


def _thread_counts() -> list[int]:
    return sorted({1, usable_cores()})


def _peak(peaks: dict[str, Any]) -> str:
    threads = "1 thread" if peaks["threads"] == 1 else f"{peaks['threads']} threads"
    gflops, gigabytes = peaks["fma_gflops"], peaks["read_gigabytes_per_second"]
    return f"{threads}: {gflops:.0f} GFLOP/s f32, {gigabytes:.1f} GB/s read from memory (measured)"


def _amount(name: str, value: int) -> str:
    return format_bytes(value) if name.endswith("_bytes") else f"{value:,}"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
