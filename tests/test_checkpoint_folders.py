"""Folders as Hugging Face lays them out: what is there is read, what lacks is named with its remedy."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import educe
from educe.errors import EduceError, LimitError, ModelFileError
from educe.files import open_beneath
from educe.formats import checkpoint
from educe.limits import Limits
from tests.test_safetensors import written

CONFIG = {"model_type": "llama", "hidden_size": 4, "tie_word_embeddings": True}


def weights_file(arrays: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, array in arrays.items():
        extent = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": extent}
        data += array.tobytes()
    return written(header, data)


def arrays(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(names))
    return {name: rng.standard_normal((3, 4)).astype(np.float32) for name in names}


def write(folder: Path, **contents: Any) -> Path:
    """Write files; a double underscore in a name is its dot, a dictionary is written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def single(folder: Path, **contents: Any) -> Path:
    model = weights_file(arrays("a", "b"))
    return write(folder, **({"config__json": CONFIG, "model__safetensors": model} | contents))


def sharded(folder: Path, weight_map: Any, **shards: bytes) -> Path:
    files = {f"{name}__safetensors": content for name, content in shards.items()}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return write(folder, config__json=CONFIG, model__safetensors__index__json=index, **files)


def refused(folder: Path, kind: type[EduceError] = ModelFileError) -> EduceError:
    start = time.perf_counter()
    with pytest.raises(kind) as caught:
        checkpoint.load(folder)
    assert time.perf_counter() - start < 20
    assert caught.value.path
    return caught.value


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = single(
        tmp_path,
        generation_config__json={"temperature": 0.5},
        tokenizer__json={"model": {}},
        tokenizer_config__json={"chat_template": "{{ messages }}"},
    )
    found = checkpoint.load(folder)
    assert (found.model_type, found.config, found.path) == ("llama", CONFIG, folder)
    assert found.generation == {"temperature": 0.5}
    assert found.tokenizer is not None
    assert json.loads(found.tokenizer.files["tokenizer.json"]) == {"model": {}}
    assert found.tokenizer.chat_template == "{{ messages }}"
    assert found.notes == ()
    for name, array in arrays("a", "b").items():
        np.testing.assert_array_equal(found.weights[name].array(), array)
    assert found.num_parameters == 24
    assert found.size_bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_the_digest_is_that_of_all_files(tmp_path: Path) -> None:
    first = checkpoint.load(single(tmp_path / "1")).digest.hexdigest()
    assert checkpoint.load(single(tmp_path / "2")).digest.hexdigest() == first
    other = single(tmp_path / "3", config__json=CONFIG | {"hidden_size": 5})
    assert checkpoint.load(other).digest.hexdigest() != first


def test_shards_are_joined(tmp_path: Path) -> None:
    one, two = arrays("a", "b"), arrays("c")
    folder = sharded(
        tmp_path,
        {"a": "one.safetensors", "c": "two.safetensors", "b": "one.safetensors"},
        one=weights_file(one),
        two=weights_file(two),
    )
    found = checkpoint.load(folder).weights
    assert {name: weight.array().tobytes() for name, weight in found.items()} == {
        name: array.tobytes() for name, array in (one | two).items()
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template__jinja": "täglich".encode()}, "täglich"),
        ({"chat_template__jinja": b"own", "tokenizer_config__json": {"chat_template": "old"}}, "own"),
        ({"chat_template__json": {"chat_template": "json"}}, "json"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "default", "template": "one"}]}}, "one"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "one"}, 5]}}, None),
        ({"tokenizer_config__json": {}}, None),
    ],
)
def test_the_chat_template_is_found(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    found = checkpoint.load(single(tmp_path, tokenizer__json={}, **files)).tokenizer
    assert found is not None
    assert found.chat_template == expected


def test_older_tokenizer_files_are_collected(tmp_path: Path) -> None:
    found = checkpoint.load(single(tmp_path, vocab__json={"a": 0}, merges__txt=b"a b", other__txt=b"x"))
    assert found.tokenizer is not None
    assert found.tokenizer.files.keys() == {"vocab.json", "merges.txt"}


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    found = checkpoint.load(single(tmp_path))
    assert found.tokenizer is None
    assert "download it" in found.notes[0]


def test_the_only_safetensors_file_may_have_any_name(tmp_path: Path) -> None:
    folder = write(tmp_path, config__json=CONFIG, consolidated__safetensors=weights_file(arrays("a")))
    assert checkpoint.load(folder).weights.keys() == {"a"}


def test_what_lacks_is_named_with_its_remedy(tmp_path: Path) -> None:
    weights = weights_file(arrays("a"))
    empty = str(refused(write(tmp_path / "empty")))
    assert "no config.json" in empty
    assert "download config.json" in empty
    assert "has no config.json" in str(refused(write(tmp_path / "weights", model__safetensors=weights)))
    bare = str(refused(write(tmp_path / "bare", config__json=CONFIG)))
    assert "download model.safetensors" in bare
    two = write(tmp_path / "two", config__json=CONFIG, x__safetensors=weights, y__safetensors=weights)
    assert "download model.safetensors.index.json" in str(refused(two))
    assert "model_type" in str(refused(single(tmp_path / "typeless", config__json={})))
    assert "cannot be opened" in str(refused(tmp_path / "nowhere"))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    folder = write(tmp_path, config__json=CONFIG, pytorch_model__bin=b"\x80\x02}q\x00.")
    text = str(refused(folder))
    assert "never opened" in text
    assert "safe_serialization=True" in text


@pytest.mark.parametrize(
    "name",
    ["config__json", "generation_config__json", "tokenizer_config__json", "model__safetensors__index__json"],
)
@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"a": 1, "a": 2}', b"\xff", b"{", b'"x"'])
def test_broken_json_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    folder = single(tmp_path, **({"tokenizer__json": {}} | {name: content}))
    if name.startswith("model"):
        (folder / "model.safetensors").rename(folder / "part.safetensors")
    error = refused(folder)
    assert str(error.path).endswith(name.replace("__", "."))


@pytest.mark.parametrize(
    ("weight_map", "cause"),
    [
        ({}, "no weight_map"),
        (["a"], "no weight_map"),
        ({"a": 5}, "names the file 5"),
        ({"a": "one.safetensors", "z": "one.safetensors"}, "'z', and it does not"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "cannot be opened"),
        ({"a": "one.safetensors", "b": "copy.safetensors"}, "two files that hold 'a'"),
        ({"a": "one.safetensors", "b": "./one.safetensors"}, "two files that hold 'a'"),
        ({"a": "../one.safetensors"}, "not beneath"),
        ({"a": "/etc/passwd"}, "not beneath"),
        ({"a": "x/../../one.safetensors"}, "not beneath"),
        ({"a": "one.safetensors\0"}, "not beneath"),
        ({"a": ""}, "not beneath"),
        ({"a": "."}, "not beneath"),
        ({"a": "x" * 5000}, "cannot be opened"),
        ({"a": "one\ud800"}, "cannot be opened"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: Any, cause: str) -> None:
    one = weights_file(arrays("a", "b"))
    (tmp_path / "one.safetensors").write_bytes(one)
    assert cause in str(refused(sharded(tmp_path / "model", weight_map, one=one, copy=one)))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_links_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = single(tmp_path / "model", tokenizer__json={}, chat_template__jinja=b"x")
    (folder / name).replace(tmp_path / "outside")
    (folder / name).symlink_to("../outside")
    error = refused(folder)
    assert "symbolic link" in str(error)
    assert "cp -L" in str(error)


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    folder = single(tmp_path)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "not a regular file" in str(refused(folder))
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "not a regular file" in str(refused(folder))


def hub_cache(root: Path, target: str) -> Path:
    """Lay files out as the cache of the Hugging Face Hub does, with one link to `target`."""
    snapshot = root / "models--x--y" / "snapshots" / ("a" * 40)
    blobs = single(root / "models--x--y" / "blobs")
    (blobs / "model.safetensors").rename(blobs / ("b" * 64))
    write(snapshot, config__json=CONFIG)
    (snapshot / "model.safetensors").symlink_to(target)
    return snapshot


def test_the_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    found = checkpoint.load(hub_cache(tmp_path, "../../blobs/" + "b" * 64))
    assert found.weights.keys() == {"a", "b"}


def test_folders_in_the_cache_of_the_hub_are_read(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "../../blobs/" + "b" * 64)
    (snapshot / "inner").mkdir()
    for up, found in (("../../..", b"{}"), ("../..", None), ("../../../..", None)):
        (tmp_path / "models--x--y" / "blobs" / ("c" * 40)).write_bytes(b"{}")
        (snapshot / "inner" / "config.json").unlink(missing_ok=True)
        (snapshot / "inner" / "config.json").symlink_to(f"{up}/blobs/{'c' * 40}")
        if found is None:
            with pytest.raises(ModelFileError, match="symbolic link"):
                open_beneath(snapshot, "inner/config.json")
        else:
            with open_beneath(snapshot, "inner/config.json") as file:
                assert file.read() == found


def test_external_data_in_the_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    blobs, inner = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "1" / "onnx"
    blobs.mkdir(parents=True)
    inner.mkdir(parents=True)
    weight = np.arange(300, dtype=np.float32)
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [300]) for name in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9),
        blobs / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0,
    )  # fmt: skip
    for name, blob in (("model.onnx", "d" * 64), ("model.onnx_data", "e" * 64)):
        (blobs / name).rename(blobs / blob)
        (inner / name).symlink_to(f"../../../blobs/{blob}")
    found = educe.compile(str(inner / "model.onnx")).run({"x": weight})["y"]
    np.testing.assert_array_equal(found, weight + weight)


def test_what_only_looks_like_the_cache_of_the_hub_is_refused(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "../../blobs/" + "b" * 64)
    assert "symbolic link" in str(
        refused(snapshot.parent.parent.rename(tmp_path / "x") / "snapshots" / ("a" * 40))
    )


@pytest.mark.parametrize(
    "target",
    [
        "../../../blobs/x",
        "../../blobs/../../x",
        "/etc/passwd",
        "../../blobs/config.json",
        "../../../models--z/blobs/" + "b" * 64,
    ],
)
def test_other_links_in_a_cache_are_refused(tmp_path: Path, target: str) -> None:
    assert "symbolic link" in str(refused(hub_cache(tmp_path, target)))


def test_a_blob_that_is_a_link_is_refused(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "../../blobs/" + "b" * 64)
    blob = tmp_path / "models--x--y" / "blobs" / ("b" * 64)
    blob.replace(tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    assert "symbolic link" in str(refused(snapshot))


def test_limits_hold(tmp_path: Path) -> None:
    folder = single(tmp_path, tokenizer__json={})
    for name in ("external_bytes", "header_bytes", "card_bytes", "tokenizer_bytes"):
        with pytest.raises(LimitError, match=name):
            checkpoint.load(folder, Limits(**{name: 1}))


def test_every_truncation_of_every_file_is_read_or_refused(tmp_path: Path) -> None:
    folder = single(tmp_path, tokenizer__json={}, chat_template__jinja="ä".encode())
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            if path.name in ("config.json", "model.safetensors"):
                refused(folder)
            else:
                with contextlib.suppress(ModelFileError):
                    checkpoint.load(folder)
        path.write_bytes(content)
    assert checkpoint.load(folder).weights


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    weights = weights_file(arrays("a"))
    for content, cause in (
        (b"", "empty"),
        (b"\x80\x04x", "pickle"),
        (b"hello", "begins with"),
        (weights, "give the whole folder"),
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(EduceError, match=cause):
            checkpoint.load(tmp_path / "file")


def test_language_models_are_told_from_onnx(tmp_path: Path, zoo: Path) -> None:
    assert checkpoint.recognises(single(tmp_path / "model"))
    assert checkpoint.recognises(write(tmp_path / "unconfigured", model__safetensors=b""))
    assert all(checkpoint.recognises(zoo / name) for name in ("stories260K", "transliteration"))
    assert checkpoint.recognises(zoo / "stories260K" / "stories260K.bin")
    exported = write(tmp_path / "exported", config__json={})
    write(exported / "onnx", model__onnx=b"")
    for other in (zoo / "mnist", zoo / "mnist" / "model.onnx", zoo / "images", exported):
        assert not checkpoint.recognises(other)
