"""What the servers of PyTriton have in common; to be imported before PyTriton."""

from __future__ import annotations

import os
import sys
import sysconfig
from typing import Any

# Triton's stub looks for the library of the interpreter that runs this.
if "PYTRITON_READY" not in os.environ:
    os.environ["PYTRITON_READY"] = "1"
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    os.execv(sys.executable, [sys.executable, *sys.argv])

from pytriton.triton import Triton, TritonConfig


def serve(port: int, **model: Any) -> None:
    """Serve a model, as ``Triton.bind`` takes it, at some port until the process is ended."""
    config = TritonConfig(
        http_port=port,
        grpc_port=port + 1000,
        metrics_port=port + 2000,
        http_address="127.0.0.1",
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind("model", **model)
        triton.serve()
