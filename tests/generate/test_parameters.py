"""Packed weights: made once, mapped from then on, made again when the model changes, and near the model's."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from educe import store as stores
from educe.errors import ModelFileError, OptionError
from educe.formats import checkpoint
from educe.generate import parameters
from educe.generate.architectures import StepGraph
from educe.generate.cache import CacheFormat
from educe.generate.precision import PRECISIONS, ROUNDED_AGAIN
from educe.generate.runner import Runner
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint, Weight
from tests import gguf_models
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "educe"
STORIES = ROOT / "zoo" / "stories260K"
IDS = json.loads((STORIES / "expected.json").read_text())["cases"][0]["greedy_ids"][:40]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a store of its own, which begins with the code that is there."""
    kept = stores.folder()
    found = tmp_path / "store"
    found.mkdir()
    if kept is not None and (kept / "kernel").is_dir():
        (found / "kernel").symlink_to(kept / "kernel")
    monkeypatch.setenv("EDUCE_CACHE", str(found))
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "stories260K.bin"
    path.parent.mkdir()
    shutil.copy(STORIES / "stories260K.bin", path)
    return path


def logits(model: Checkpoint, precision: str, ids: Sequence[int] = IDS) -> tuple[np.ndarray, list[float]]:
    """Return the logits of all tokens, and what was told of the packing."""
    told: list[float] = []
    runner = Runner(
        model, max_length=64, block_size=16, precision=precision, progress=lambda done, _: told.append(done)
    )
    runner.allocate(4)
    return runner.run([Slice(ids, 0, range(4), len(ids))]), told


def test_weights_are_packed_once_and_mapped_from_then_on(model: Path, folder: Path) -> None:
    first, told = logits(checkpoint.load(model), "int8")
    assert told == sorted(told)
    assert told[-1] == 1
    again, nothing = logits(checkpoint.load(model), "int8")
    assert nothing == []
    np.testing.assert_array_equal(again, first)
    assert len(list((folder / "weights").glob("*/*"))) == 1
    other, told = logits(checkpoint.load(model), "int4")
    assert told
    assert np.abs(other - first).max() > 0.01


def test_kernels_read_the_mapped_weights_themselves(model: Path) -> None:
    for _ in range(2):
        runner = Runner(checkpoint.load(model), max_length=64, block_size=16, precision="int4")
    runner.allocate(4)
    runner.run([Slice(IDS, 0, range(4), 1)])
    read = [buffer.constant for buffer in runner._executable.executor.code.constants._buffers.values()]
    large = [array for array in read if array.nbytes > 2048]
    assert sum(array.nbytes for array in large) > 90_000
    assert not any(array.flags.writeable or array.flags.owndata for array in large)


def test_a_file_that_is_written_to_is_packed_again_even_if_its_times_are_set_back(model: Path) -> None:
    before, _ = logits(checkpoint.load(model), "int8")
    times = model.stat()
    content = bytearray(model.read_bytes())
    content[-400_000:-300_000] = content[-300_000:-200_000]
    model.write_bytes(content)
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    after, told = logits(checkpoint.load(model), "int8")
    assert told
    assert np.abs(after - before).max() > 0.01


def test_other_settings_of_the_same_files_are_packed_by_themselves(model: Path) -> None:
    loaded = checkpoint.load(model)
    logits(loaded, "int8")
    changed = dataclasses.replace(loaded, config={**loaded.config, "bos_token_id": 3})
    assert logits(changed, "int8")[1]


def test_where_nothing_can_be_kept_the_bits_are_the_same(model: Path, folder: Path) -> None:
    kept, _ = logits(checkpoint.load(model), "int4")
    shutil.rmtree(folder / "weights")
    (folder / "weights").write_text("in the way")
    made, told = logits(checkpoint.load(model), "int4")
    assert told
    np.testing.assert_array_equal(made, kept)


def test_a_packed_file_that_is_damaged_is_made_again(model: Path, folder: Path) -> None:
    before, _ = logits(checkpoint.load(model), "int8")
    (path,) = (folder / "weights").glob("*/*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after, told = logits(checkpoint.load(model), "int8")
    assert told
    np.testing.assert_array_equal(after, before)


def test_weights_that_are_not_those_of_the_files_are_not_kept(model: Path, folder: Path) -> None:
    loaded = checkpoint.load(model)
    logits(dataclasses.replace(loaded, stamps=()), "int8")
    assert not (folder / "weights").exists()


def test_numbers_that_are_not_finite_are_named_and_nothing_is_kept(model: Path, folder: Path) -> None:
    loaded = checkpoint.load(model)
    name = "model.layers.2.mlp.up_proj.weight"
    values = loaded.weights[name].array().copy()
    values[3, 5] = np.nan
    broken = Weight(name, values.shape, "F32", values.view(np.uint8).reshape(-1))
    with pytest.raises(ModelFileError, match=r"layers\.2\.mlp\.up_proj\.weight.*not finite"):
        logits(dataclasses.replace(loaded, weights={**loaded.weights, name: broken}), "int8")
    assert [path for path in (folder / "weights").rglob("*") if path.is_file()] == []


def test_an_unknown_precision_is_refused_with_those_that_there_are(model: Path) -> None:
    with pytest.raises(OptionError, match=r"'fp3'.*" + ", ".join(PRECISIONS)):
        logits(checkpoint.load(model), "fp3")


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0", "Q5_0"])
def test_models_of_gguf_run_as_their_file_has_them(rng, tmp_path: Path, encoding: str) -> None:
    weights = gguf_models.decoder_weights(rng, tied=True)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    tensors = {}
    for name, array in weights.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors[name] = array / 8 if array.ndim > 1 else array
    path = gguf_models.write(tmp_path / "m.gguf", "qwen2", gguf_models.KEYS, tensors, encoding=encoding)
    loaded = checkpoint.load(path)
    biases = {
        f"model.layers.{layer}.self_attn.{part}_proj.bias": (rows,)
        for layer in range(2)
        for part, rows in {"q": 64, "k": 32, "v": 32}.items()
    }
    zeros = {
        name: Weight(name, shape, "F32", np.zeros(4 * shape[0], np.uint8)) for name, shape in biases.items()
    }
    loaded = dataclasses.replace(loaded, weights={**loaded.weights, **zeros})
    ids = rng.integers(0, 8, 24).tolist()
    exact, _ = logits(loaded, "f32", ids)
    found, _ = logits(loaded, "auto", ids)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05
    notes = Runner(loaded, max_length=64, precision="auto").notes
    assert notes == (() if encoding != "Q5_0" else (f"{ROUNDED_AGAIN}: 15 of Q5_0",))


def test_every_source_that_decides_what_is_packed_is_in_the_key(model: Path) -> None:
    run: set[Path] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            run.add(Path(frame.f_code.co_filename))

    loaded = checkpoint.load(model)
    threading.setprofile(note)
    try:
        logits(loaded, "int4")
    finally:
        threading.setprofile(None)
    ours = {path for path in run if PACKAGE in path.parents}
    assert PACKAGE / "model" / "quantized.py" in ours
    covered = [path for place in parameters._SOURCES for path in (place, *place.rglob("*.py"))]
    assert ours - set(covered) <= {PACKAGE / "pages.py", PACKAGE / "store.py"}


def test_an_edit_of_a_source_makes_another_key(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    first, second = tmp_path / "a.py", tmp_path / "inner" / "b.py"
    first.write_text("a = 1")
    second.write_text("b = 1")
    before = stores.source_hash(tmp_path)
    stores.source_hash.cache_clear()
    assert stores.source_hash(tmp_path) == before
    second.write_text("b = 2")
    stores.source_hash.cache_clear()
    assert stores.source_hash(tmp_path) != before


def test_a_number_stays_a_number(model: Path) -> None:
    step = StepGraph(checkpoint.load(model), CacheFormat("f32", 16))
    number = step.number("half", np.array(0.5, np.float32))
    assert number.const_value is not None
    assert number.const_value.numpy().shape == ()
