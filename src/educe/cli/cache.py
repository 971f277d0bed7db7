"""``educe cache``: what is kept on disk."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.markup import escape
from rich.table import Table

from educe import api, store
from educe.cli import options
from educe.cli.screen import counted, output, print_json, print_table, working
from educe.engines.native import NativeExecutable
from educe.errors import OptionError
from educe.limits import format_bytes
from educe.settings import CACHE

_TARGET = re.compile("name='([^']*)'")

app = typer.Typer(
    help="Show, explain or clear what is kept on disk: code and packed weights.", no_args_is_help=True
)


def _store() -> store.Store:
    found = store.store()
    if found is None:
        raise OptionError("nothing is kept on disk", remedy=f"unset {CACHE.variable}")
    return found


@contextmanager
def _setting(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


@app.command("list")
def list_entries(json: options.JsonOption = False) -> None:
    """List the entries, the one used last first."""
    kept = _store()
    entries = kept.entries()
    if json:
        for entry in entries:
            print_json(
                {
                    "kind": entry.key.kind,
                    "name": entry.key.name,
                    "size_bytes": entry.size_bytes,
                    "ingredients": dict(entry.key.ingredients),
                }
            )
        return
    table = Table()
    for name in ("kind", "name", "size", "target"):
        table.add_column(name, no_wrap=True)
    for entry in entries:
        key = entry.key
        target = _TARGET.search(dict(key.ingredients).get("target", ""))
        name, size = escape(key.name), format_bytes(entry.size_bytes)
        table.add_row(escape(key.kind), name, size, escape(target[1]) if target else "")
    print_table(table)
    total = sum(entry.size_bytes for entry in entries)
    held = counted(len(entries), "entry", "entries")
    output().print(
        f"{held}, {format_bytes(total)} of at most {format_bytes(kept.max_bytes)}, in {kept.root}",
        markup=False,
    )


@app.command("clear")
def clear(json: options.JsonOption = False) -> None:
    """Remove every entry."""
    kept = _store()
    removed = kept.clear()
    if json:
        print_json({"removed": removed})
    else:
        output().print(f"{counted(removed, 'entry', 'entries')} removed from {kept.root}", markup=False)


@app.command("explain")
def explain(
    model: options.ModelArgument,
    json: options.JsonOption = False,
) -> None:
    """Say of each kernel of MODEL whether it is kept, and if it is not, what its key differs in."""
    from educe.bench.feeds import random_feeds
    from educe.compiler.library import kernel_key
    from educe.compiler.target import host_target

    loaded = api.load(model)
    kept = _store()
    # Lowering makes what is missing: in a folder of its own, so that this command changes nothing.
    with (
        tempfile.TemporaryDirectory() as folder,
        _setting(CACHE.variable, folder),
        working(f"compiling {loaded.name}"),
    ):
        executable = api.compile(loaded, engine="native")
        assert isinstance(executable, NativeExecutable)
        segments = executable.program(random_feeds(loaded))
    kernels = {launch.kernel: None for segment in segments for launch in segment.launches}
    for kernel in kernels:
        reason = kept.explain(kernel_key(kernel, host_target()))
        if json:
            print_json({"kernel": kernel.name, "choices": str(kernel), "state": reason})
        else:
            output().print(f"{reason}: {kernel}", markup=False)
