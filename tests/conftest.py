"""What all tests share: the zoo, a seeded generator, small models, and how much is tried at random."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[1]

settings.register_profile("deep", max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


def run_python(code: str) -> str:
    """Return what a new interpreter prints, without the spaces around it."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    return done.stdout.strip()


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep compiled code in a folder of the tests' own, which their processes share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["EDUCE_CACHE"] = str(shared / "store")


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The repository's folder of real trained models and inputs."""
    return ROOT / "zoo"


@pytest.fixture(scope="session")
def streamable(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The traffic video with its index in front, so that a file cut off can still be opened."""
    import av  # the tests of a cluster have none

    path = tmp_path_factory.mktemp("video") / "front.mp4"
    with (
        av.open(str(zoo / "video" / "traffic_frames.mp4")) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def tiny() -> onnx.ModelProto:
    """Give y = relu(x @ w), x: f32[N, 3], w: f32[3, 2]."""
    return tiny_model()


def tiny_model(opset: int = 21) -> onnx.ModelProto:
    weight = np.arange(6, dtype=np.float32).reshape(3, 2) - 2
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["t"], name="product"),
            helper.make_node("Relu", ["t"], ["y"], name="relu"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
