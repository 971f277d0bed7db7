"""What an engine takes from a cold start: time to its first answer, and memory, in a process of its own.

python -m educe.bench.cold '{"path": "model.onnx", "engine": "onnxruntime"}'
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from educe.errors import EngineError

_RUNS = 3
_TIMEOUT_SECONDS = 600


class ColdStart(msgspec.Struct, frozen=True):
    """A process that loads a model, compiles it and runs it a few times.

    Attributes:
        loaded_bytes: Resident memory after the model was loaded, before the engine was imported.
        peak_bytes: The most at any moment after that.
        kept_bytes: After the runs.
        start_seconds: From the loaded model to the first answer, the import of the engine left out.
    """

    loaded_bytes: int
    peak_bytes: int
    kept_bytes: int
    start_seconds: float

    @property
    def growth_bytes(self) -> int:
        """What the engine added at its peak: its library, the compiled model, and its runs."""
        return self.peak_bytes - self.loaded_bytes


class Request(msgspec.Struct, frozen=True):
    """What the process measures.

    Attributes:
        batch: Items of a run.
        sizes: Sizes of other named dimensions.
        fixed: Whether the engine is given a model with these sizes written into it.
        options: Compile options.
    """

    path: str
    engine: str
    batch: int = 1
    sizes: dict[str, int] = {}
    fixed: bool = False
    options: dict[str, Any] = {}


def measure_cold(request: Request) -> ColdStart | None:
    """Return what a start takes; None where the system does not tell.

    Raises:
        EngineError: the process failed; the error holds its last line.
    """
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-m", "educe.bench.cold", msgspec.json.encode(request).decode()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    engine = request.engine
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"a start of {engine} could not be measured in {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise EngineError(f"a start of {engine} could not be measured: {lines[-1]}", path=request.path)
    return msgspec.json.decode(done.stdout, type=ColdStart)


def _measure(request: Request) -> ColdStart:
    from educe import api, engines
    from educe.bench.feeds import random_feeds, with_sizes_of

    model = api.load(request.path)
    feeds = random_feeds(model, request.batch, sizes=request.sizes)
    if request.fixed:
        model = with_sizes_of(model, feeds)
    _reset_peak()
    loaded_bytes = _status("VmRSS")
    engines.get(request.engine).version()
    start = time.perf_counter()
    executable = engines.compile(model, request.engine, **request.options)
    executable.run(feeds)
    start_seconds = time.perf_counter() - start
    for _ in range(_RUNS - 1):
        executable.run(feeds)
    kept_bytes = _status("VmRSS")
    # The kernel updates the two counts at different times, a few pages apart.
    return ColdStart(loaded_bytes, max(_status("VmHWM"), kept_bytes), kept_bytes, start_seconds)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # Without it, the peak of loading counts as well.
        return


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise EngineError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(msgspec.json.encode(_measure(msgspec.json.decode(sys.argv[1], type=Request))).decode())
