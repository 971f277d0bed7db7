"""The zoo through the compiler: right, and the same bits whatever the threads and the neighbours."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from educe import api
from educe.bench.compare import compare
from educe.bench.feeds import random_feeds
from educe.compiler.library import library
from educe.compiler.target import host_target
from educe.engines.native import NativeExecutable
from educe.model import Model, TensorType
from educe.store import Store
from tests.conftest import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "zoo").glob("*/model.onnx"))
NAMES = [folder.name for folder in FOLDERS]


@cache
def loaded(name: str) -> Model:
    return api.load(ROOT / "zoo" / name)


def native(name: str, **options: int) -> NativeExecutable:
    executable = api.compile(loaded(name), engine="native", **options)
    assert isinstance(executable, NativeExecutable)
    return executable


def has_free_batch(model: Model) -> bool:
    inputs = [value for value in model.signature.inputs.values() if isinstance(value, TensorType)]
    first = [value.shape[0] for value in inputs if value.shape]
    return bool(first) and all(not isinstance(size, int) for size in first)


BATCHED = [name for name in NAMES if has_free_batch(loaded(name))]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_reference(name):
    feeds = random_feeds(loaded(name), seed=3)
    judge = api.compile(loaded(name), engine="reference")
    assert compare(native(name), judge, feeds, tolerance=1e-4).agree


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_on_the_host(name):
    executable = native(name)
    segments = executable.program(random_feeds(loaded(name)))
    called = [segment.step.operator for segment in segments if segment.step and segment.step.call]
    assert not called


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_the_number_of_threads(name):
    feeds = random_feeds(loaded(name), seed=4)
    alone, shared = (native(name, threads=threads).run(feeds) for threads in (1, 2))
    for key, value in alone.items():
        assert np.array_equal(value, shared[key], equal_nan=value.dtype.kind == "f"), key


def test_some_models_take_any_batch():
    assert len(BATCHED) >= 3


@pytest.mark.parametrize("name", BATCHED)
def test_bits_do_not_depend_on_the_neighbours(name):
    executable = native(name)
    size = 64 if name not in ("mobilenet_v2", "magika") else 9
    feeds = random_feeds(loaded(name), size, seed=5)
    whole = executable.run(feeds)
    for start, stop in ((0, 1), (1, 3), (3, 8), (7, size)):
        part = executable.run({key: value[start:stop] for key, value in feeds.items()})
        for key, value in part.items():
            assert np.array_equal(value, whole[key][start:stop]), (key, start, stop)


@pytest.mark.parametrize("name", BATCHED)
def test_other_batches_compile_nothing(name):
    executable = native(name)
    executable.run(random_feeds(loaded(name), 1))
    executable.run(random_feeds(loaded(name), 3))
    made = len(library(host_target()))
    for batch in (2, 4, 5, 7):
        executable.run(random_feeds(loaded(name), batch))
    assert len(library(host_target())) == made


def test_a_second_process_makes_no_kernel(tmp_path: Path, monkeypatch):
    import json
    import subprocess
    import sys

    monkeypatch.setenv("EDUCE_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "educe", "compile", str(ROOT / "zoo" / "mnist"), "--json"]
    first, second = (
        json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
        for _ in range(2)
    )
    assert first["kernels_made"] == first["kernels"] > 0
    assert second["kernels_made"] == 0
    assert second["kernels"] == first["kernels"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "yolox_nano"])
def test_weights_that_are_shared_are_the_same_and_mapped(name, tmp_path, monkeypatch):
    model, feeds = loaded(name), random_feeds(loaded(name), seed=3)
    weights = {name: id(value.const_value) for name, value in model.graph.graph.initializers.items()}
    expected = native(name).run(feeds)
    monkeypatch.setenv("EDUCE_SHARE", "1")
    kept = Store(tmp_path, 10**9)
    monkeypatch.setattr("educe.compiler.memory.store", lambda: kept)
    shared = native(name)
    for output, array in shared.run(feeds).items():
        np.testing.assert_array_equal(array, expected[output])
    maps = Path("/proc/self/maps").read_text()
    large = [entry for entry in kept.entries() if str(entry.path) in maps]
    assert len(large) == len(kept.entries()) > 5
    assert sum(entry.size_bytes for entry in large) > 0.75 * shared.executor.code.constants.size_bytes
    native(name).run(feeds)
    assert len(kept.entries()) == len(large)
    assert weights == {name: id(value.const_value) for name, value in model.graph.graph.initializers.items()}
