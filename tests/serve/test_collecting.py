"""When a process that serves looks for garbage that refers to itself."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import numpy as np
import pytest

from educe.serve.served import PredictorModel
from tests.conftest import run_python
from tests.serve.conftest import serving, until

PREPARE = """
import gc, time, weakref
from educe.serve import collecting

class Node:
    pass

def old_cycle():
    node = Node()
    node.self = node
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(node)

def is_gone(found, seconds):
    end = time.monotonic() + seconds
    while found() is not None and time.monotonic() < end:
        time.sleep(0.05)
    return found() is None

collecting._SECONDS = 0.05
Node.first = Node()
Node.first.self = Node.first
frozen = weakref.ref(Node.first)
collecting.collect_at_rest()
"""


def test_old_garbage_is_looked_for_at_rest_and_not_at_work() -> None:
    found = run_python(
        PREPARE
        + """
collecting._REST_SHARE = -1.0  # never at rest
cycle = old_cycle()
kept = []
while gc.get_count()[2] < 50 and len(kept) < 10_000:  # Python alone looks after 10
    kept.append([[] for _ in range(1000)])
is_there = cycle() is not None
collecting._REST_SHARE = 2.0  # always
print(is_there, is_gone(cycle, 20))
"""
    )
    assert found.split() == ["True", "True"]


def test_what_a_dropped_model_leaves_is_looked_for_at_once() -> None:
    found = run_python(
        PREPARE
        + """
cycle = old_cycle()
del Node.first
before = is_gone(cycle, 1.0)
collecting.note_dropped()
print(before, is_gone(cycle, 20), is_gone(frozen, 20))
"""
    )
    assert found.split() == ["False", "True", "True"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_of_what_is_refused_nothing_is_left_to_be_looked_for(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[np.ndarray]] = []
    group = PredictorModel.group

    def watched(model: PredictorModel, feeds: dict[str, np.ndarray]) -> Any:
        seen.extend(map(weakref.ref, feeds.values()))
        return group(model, feeds)

    monkeypatch.setattr(PredictorModel, "group", watched)
    shape = (10_000, 31)  # one column too many; read in a thread
    array = np.ones(shape, np.float32)
    with serving("breast_cancer", grpc_port=0) as client:
        gc.collect()
        gc.disable()
        try:
            if protocol == "http":
                size = {"binary_data_size": array.nbytes}
                one = {"name": "features", "datatype": "FP32", "shape": shape, "parameters": size}
                head = json.dumps({"inputs": [one]}).encode()
                fields = {"inference-header-content-length": str(len(head))}
                path = "/v2/models/breast_cancer/infer"
                assert client.ask("POST", path, head + array.tobytes(), fields)[0] == 400
            else:
                grpc = pytest.importorskip("grpc")
                from educe.serve.grpc import messages

                request = messages.inference("ModelInferRequest")(model_name="breast_cancer")
                request.inputs.add(name="features", datatype="FP32", shape=shape)
                request.raw_input_contents.append(array.tobytes())
                with grpc.insecure_channel(client.grpc_address) as channel:
                    call = channel.unary_unary(f"/{messages.INFERENCE}/ModelInfer")
                    with pytest.raises(grpc.RpcError, match="expected 30"):
                        call(request.SerializeToString(), timeout=60)
            assert len(seen) == 1
            until(lambda: seen[0]() is None)
        finally:
            gc.enable()
