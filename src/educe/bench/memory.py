"""The memory that an engine takes, measured in a process of its own.

python -m educe.bench.memory '{"path": "model.onnx", "engine": "onnxruntime", "batch": 1, "options": {}}'
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from educe.errors import EngineError

_RUNS = 3
_TIMEOUT_SECONDS = 600


class MemoryUse(msgspec.Struct, frozen=True):
    """Resident memory of a process that loads a model, compiles it and runs it a few times.

    Attributes:
        loaded_bytes: After the model was loaded, before the engine was imported.
        peak_bytes: The most at any moment after that.
        kept_bytes: After the runs.
    """

    loaded_bytes: int
    peak_bytes: int
    kept_bytes: int

    @property
    def growth_bytes(self) -> int:
        """What the engine added at its peak: its library, the compiled model, and its runs."""
        return self.peak_bytes - self.loaded_bytes


class Request(msgspec.Struct, frozen=True):
    """What the process measures."""

    path: str
    engine: str
    batch: int = 1
    options: dict[str, Any] = {}


def measure_memory(
    path: str | os.PathLike[str], engine: str, batch: int = 1, **options: Any
) -> MemoryUse | None:
    """Return the memory that `engine` takes for the model at `path`; None where the system does not tell.

    Raises:
        EngineError: the process failed; the error holds its last line.
    """
    if not Path("/proc/self/status").exists():
        return None
    request = msgspec.json.encode(Request(os.fspath(path), engine, batch, options)).decode()
    command = [sys.executable, "-m", "educe.bench.memory", request]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"the memory of {engine} could not be measured in {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise EngineError(f"the memory of {engine} could not be measured: {lines[-1]}", path=path)
    return msgspec.json.decode(done.stdout, type=MemoryUse)


def _measure(request: Request) -> MemoryUse:
    from educe import api, engines
    from educe.bench.feeds import random_feeds

    model = api.load(request.path)
    feeds = random_feeds(model, request.batch)
    _reset_peak()
    loaded_bytes = _status("VmRSS")
    executable = engines.compile(model, request.engine, **request.options)
    for _ in range(_RUNS):
        executable.run(feeds)
    kept_bytes = _status("VmRSS")
    # The kernel updates the two counts at different times, a few pages apart.
    return MemoryUse(loaded_bytes, max(_status("VmHWM"), kept_bytes), kept_bytes)


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
