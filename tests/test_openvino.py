"""The engine `openvino`: its errors, its precision, and that it reports to nobody."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from educe import engines, formats
from educe.engines import openvino as adapter
from educe.errors import EngineError, MissingLibraryError, UnsupportedModelError
from educe.model import Model
from tests.conformance.cases import CASES, model, node


def load(proto: onnx.ModelProto) -> Model:
    return formats.load(proto.SerializeToString())


def test_a_missing_library_is_said(monkeypatch):
    for cached in (adapter._library, adapter._core):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine = engines.get("openvino")
    assert engine.version() is None
    assert engine.devices() == []
    with pytest.raises(MissingLibraryError, match=r"openvino.*pip install 'educe\[openvino\]'"):
        engine.supports(load(CASES["gemm"].model))
    adapter._library.cache_clear()


def test_nothing_is_reported_and_no_connection_is_tried():
    code = (
        "import sys\n"
        "events = []\n"
        "sys.addaudithook(lambda name, _: events.append(name) if name.startswith('socket.') else None)\n"
        "from educe import engines, formats\n"
        "from tests.conformance.cases import CASES\n"
        "case = CASES['gemm']\n"
        "given = formats.load(case.model.SerializeToString())\n"
        "engines.compile(given, 'openvino').run(case.feeds()[0])\n"
        "print(events, [name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[] []\n", done.stderr


def test_a_failed_run_tells_no_places_in_the_sources():
    given = load(model([node("Reshape", "x to")], {"x": "f32[N]", "to": "i64[2]"}, {"y": "f32[A,B]"}))
    feeds = {"x": np.zeros(6, np.float32), "to": np.array([4, 5])}
    with pytest.raises(EngineError, match=r"OpenVINO failed: .*shape") as caught:
        engines.compile(given, "openvino").run(feeds)
    assert "src/" not in str(caught.value)


def test_a_node_that_cannot_be_translated_is_named():
    given = load(model([node("StringNormalizer", "x")], {"x": "str[N]"}, {"y": "str[N]"}))
    with pytest.raises(UnsupportedModelError) as caught:
        engines.compile(given, "openvino")
    assert [problem.operator for problem in caught.value.problems] == ["StringNormalizer-21"]


def test_products_are_of_full_precision():
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((512, 64)).astype(np.float32), rng.standard_normal((8, 512))
    given = load(model([node("MatMul", "x w")], {"x": "f32[N,512]"}, {"y": "f32[N,64]"}, {"w": weight}))
    found = engines.compile(given, "openvino").run({"x": x.astype(np.float32)})["y"]
    assert np.abs(found - x @ weight).max() < 1e-3


def test_an_input_that_no_node_takes_is_taken():
    given = load(model([node("Neg", "x")], {"z": "f32[N]", "x": "f32[N]"}, {"y": "f32[N]"}))
    feeds = {"z": np.ones(3, np.float32), "x": np.full(2, 5, np.float32)}
    assert engines.compile(given, "openvino").run(feeds)["y"].tolist() == [-5, -5]
