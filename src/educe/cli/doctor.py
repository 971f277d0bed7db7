"""``educe doctor``: what this machine is and can do, and what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import msgspec
import typer

from educe import __version__, settings, store
from educe.bench.peaks import machine, measure_peaks
from educe.cli import options
from educe.cli.screen import error_fields, print_facts, print_json, working
from educe.compiler.target import host_target
from educe.engines import engines, get
from educe.errors import EduceError, OptionError, UserError
from educe.limits import DEFAULT_LIMITS, format_bytes
from educe.machine import usable_cores

EXAMPLES = """
[bold]Example[/]\n
educe doctor
"""
_EXTRAS = {
    "video": ("av",),
    "audio": ("soundfile", "soxr"),
    "openvino": ("openvino",),
}


def command(json: options.JsonOption = False) -> None:
    """Show the machine, its measured peaks, the libraries installed, the settings and the limits in force."""
    with working("measuring what this machine can do"):
        facts = _facts()
    if json:
        print_json(facts)
    else:
        print_facts(_rows(facts))
    if facts["wrong_settings"]:
        raise typer.Exit(UserError.exit_status)


def _facts() -> dict[str, Any]:
    return {
        "educe": __version__,
        "machine": msgspec.to_builtins(machine()),
        "peaks": [_measured(threads) for threads in _thread_counts()],
        "engines": {engine.name: engine.version() for engine in engines()},
        "missing_extras": [name for name, modules in _EXTRAS.items() if not all(map(_installed, modules))],
        "settings": {setting.variable: setting.value() for setting in settings.ALL},
        "wrong_settings": _wrong_settings(),
        "limits": dataclasses.asdict(DEFAULT_LIMITS),
    }


def _measured(threads: int) -> dict[str, Any]:
    try:
        return dict(msgspec.to_builtins(measure_peaks(threads)))
    except EduceError as error:
        return {"threads": threads, "error": error_fields(error)}


def _check_cache() -> None:
    """Raise `OptionError` if what is compiled cannot be kept."""
    folder = store.folder()
    if folder is not None and not store.is_writable(folder):
        raise OptionError(f"{folder} cannot be written", remedy="set it to a folder that can, or off")


_CHECKS: dict[str, Callable[[], object]] = {
    settings.ENGINE.variable: get,
    settings.THREADS.variable: lambda: settings.resolve_threads(None),
    settings.TARGET.variable: host_target,
    settings.CACHE.variable: _check_cache,
    settings.CACHE_BYTES.variable: store.max_bytes,
}


def _wrong_settings() -> dict[str, Any]:
    """Return the error of each setting whose value cannot be used."""
    found = {}
    for variable, check in _CHECKS.items():
        try:
            check()
        except EduceError as error:
            found[variable] = error_fields(error)
    return found


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
    for name, value in facts["settings"].items():
        rows += [("setting", f"{name}={value}")]
        if name in facts["wrong_settings"]:
            error = facts["wrong_settings"][name]
            rows += [("", f"wrong: {error['cause']}"), ("", f"→ {error['remedy']}")]
    return rows + [("limit", f"{name} {_amount(name, value)}") for name, value in facts["limits"].items()]


def _thread_counts() -> list[int]:
    return sorted({1, usable_cores()})


def _peak(peaks: dict[str, Any]) -> str:
    threads = "1 thread" if peaks["threads"] == 1 else f"{peaks['threads']} threads"
    if "error" in peaks:
        return f"{threads}: not measured: {peaks['error']['cause']}"
    gflops, gigabytes = peaks["fma_gflops"], peaks["read_gigabytes_per_second"]
    return f"{threads}: {gflops:.0f} GFLOP/s f32, {gigabytes:.1f} GB/s read from memory (measured)"


def _amount(name: str, value: int) -> str:
    return format_bytes(value) if name.endswith("_bytes") else f"{value:,}"


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
