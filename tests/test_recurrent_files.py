"""Folders of ml5's charRNN and of TensorFlow.js: weights in PyTorch's order; hostile files are refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.errors import EduceError, LimitError, ModelFileError, UnsupportedFormatError, UnsupportedModelError
from educe.formats import checkpoint
from educe.limits import Limits

LETTERS, TRANSLATOR = "charrnn_charlotte_bronte", "en_fr_char_lstm"
KERNEL = "rnnlm/multi_rnn_cell/cell_1/basic_lstm_cell/kernel"


def edited(folder: Path, zoo: Path, name: str, file: str, edit: Callable[[Any], Any]) -> Path:
    """Return a copy of a folder of the zoo with one JSON file changed."""
    shutil.copytree(zoo / name, folder, dirs_exist_ok=True)
    content = json.loads((folder / file).read_text())
    edit(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def refused(folder: Path, kind: type[EduceError], match: str) -> None:
    start = time.perf_counter()
    with pytest.raises(kind, match=match) as caught:
        checkpoint.load(folder)
    assert time.perf_counter() - start < 20
    assert caught.value.path


@pytest.mark.parametrize("name", [LETTERS, TRANSLATOR])
def test_a_folder_is_recognised_and_hashed_whole(zoo: Path, name: str) -> None:
    found = checkpoint.load(zoo / name)
    assert checkpoint.recognises(zoo / name)
    unread = {"LICENSE", "expected.json", "Variable"}
    sizes = [path.stat().st_size for path in (zoo / name).iterdir() if path.name not in unread]
    assert found.size_bytes == sum(sizes)


def test_gates_are_ordered_as_pytorch_has_them(zoo: Path) -> None:
    found = checkpoint.load(zoo / LETTERS)
    file = "rnnlm_multi_rnn_cell_cell_1_basic_lstm_cell_kernel"
    kernel = np.fromfile(zoo / LETTERS / file, np.float32).reshape(256, 4, 128)
    for part, rows in (("ih", slice(0, 128)), ("hh", slice(128, 256))):
        i, g, f, o = (kernel[rows, gate].T for gate in range(4))
        np.testing.assert_array_equal(
            found.weights[f"lstm.weight_{part}_l1"].array(), np.vstack([i, f, g, o])
        )
    forget = np.zeros(512)
    forget[128:256] = 1
    np.testing.assert_array_equal(found.weights["lstm.bias_hh_l1"].array(), forget)


def test_shards_are_joined_where_a_weight_lies_in_two(zoo: Path, tmp_path: Path) -> None:
    def cut(model: dict[str, Any]) -> None:
        model["weightsManifest"][0]["paths"] = ["one", "two", "three"]

    folder = edited(tmp_path, zoo, TRANSLATOR, "model.json", cut)
    content = (folder / "group1-shard1of1").read_bytes()
    for file, part in (("one", content[:1001]), ("two", content[1001:70_000]), ("three", content[70_000:])):
        (folder / file).write_bytes(part)
    found, whole = checkpoint.load(folder), checkpoint.load(zoo / TRANSLATOR)
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(found.weights[name].array(), weight.array())


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


MANIFESTS: dict[str, tuple[Callable[[Any], Any], type[EduceError], str]] = {
    "empty": (lambda m: m.clear(), ModelFileError, "embedding"),
    "an entry is a number": (lambda m: m.update(embedding=3), ModelFileError, "described by 3"),
    "deep": (lambda m: m.update(embedding=nested(900)), ModelFileError, "embedding|nested"),
    "a file outside": (lambda m: m["embedding"].update(filename="../x"), ModelFileError, "beneath"),
    "an absolute file": (lambda m: m["embedding"].update(filename="/etc/passwd"), ModelFileError, "beneath"),
    "a missing file": (lambda m: m["embedding"].update(filename="gone"), ModelFileError, "copied too"),
    "a folder": (lambda m: m["embedding"].update(filename="."), ModelFileError, "beneath"),
    "another file": (lambda m: m["embedding"].update(filename="Variable"), ModelFileError, "has 4 bytes"),
    "negative": (lambda m: m["embedding"].update(shape=[-1, 128]), ModelFileError, "has the shape"),
    "huge": (lambda m: m["embedding"].update(shape=[2**62, 128]), ModelFileError, "softmax_w"),
    "a vector": (lambda m: m["embedding"].update(shape=[108]), ModelFileError, "not that of a matrix"),
    "empty matrix": (lambda m: m["rnnlm/softmax_w"].update(shape=[0, 108]), ModelFileError, "a matrix"),
    "other sizes": (lambda m: m[KERNEL].update(shape=[128, 1024]), ModelFileError, "cell_1"),
    "a layer is missing": (lambda m: m.pop(KERNEL), UnsupportedModelError, "cell_1"),
    "another network": (lambda m: m.update(gru=m["embedding"]), UnsupportedModelError, "'gru'"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_hostile_manifest_is_refused(zoo: Path, tmp_path: Path, case: str) -> None:
    edit, kind, match = MANIFESTS[case]
    refused(edited(tmp_path, zoo, LETTERS, "manifest.json", edit), kind, match)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda v: v.update(ab=108), "'ab', which is no character"),
        (lambda v: v.update({"": 108}), "'', which is no character"),
        (lambda v: v.update({"\ud800": 108}), "ud800', which is no character"),
        (lambda v: v.update(z=107), "0, 1, 2"),
        (lambda v: v.update(z="x"), "0, 1, 2"),
        (lambda v: v.update(ж=108), "has 109 characters, and the model 108"),
        (lambda v: v.clear(), "0, 1, 2"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
    zoo: Path, tmp_path: Path, edit: Callable[[Any], Any], match: str
) -> None:
    refused(edited(tmp_path, zoo, LETTERS, "vocab.json", edit), ModelFileError, match)


def group(model: Any) -> Any:
    return model["weightsManifest"][0]


def layers(model: Any) -> Any:
    return model["modelTopology"]["model_config"]["config"]["layers"]


MODELS: dict[str, tuple[Callable[[Any], Any], type[EduceError], str]] = {
    "graph model": (lambda m: m.update(format="graph-model"), UnsupportedFormatError, "'graph-model'"),
    "no layers": (lambda m: m.update(modelTopology=None), UnsupportedFormatError, "no layers model"),
    "no groups": (lambda m: m.update(weightsManifest=3), ModelFileError, "has 3 for weightsManifest"),
    "a group is a number": (lambda m: m.update(weightsManifest=[3]), ModelFileError, "None for paths"),
    "deep": (lambda m: group(m).update(paths=nested(900)), ModelFileError, "names the file|nested"),
    "a shard outside": (lambda m: group(m).update(paths=["../x"]), ModelFileError, "beneath"),
    "a shard twice": (lambda m: group(m).update(paths=["a", "a"]), ModelFileError, "'a' twice"),
    "a shard is nothing": (lambda m: group(m).update(paths=[None]), ModelFileError, "file None twice"),
    "a missing shard": (lambda m: group(m)["paths"].append("gone"), ModelFileError, "gone"),
    "no shard": (lambda m: group(m).update(paths=[]), ModelFileError, "files of 0 bytes"),
    "too few bytes": (lambda m: group(m)["weights"].append(
        {"name": "x", "shape": [2**40], "dtype": "float32"}), ModelFileError, "bytes of weights in files"),
    "too many bytes": (lambda m: group(m)["weights"].pop(), ModelFileError, "bytes of weights in files"),
    "a weight twice": (lambda m: group(m)["weights"][5].update(name="lstm_1/kernel", shape=[108, 1024]),
                       ModelFileError, "'lstm_1/kernel' twice"),
    "a weight is a text": (lambda m: group(m)["weights"].append("x"), ModelFileError, "by 'x'"),
    "quantized": (lambda m: group(m)["weights"][0].update(quantization={}), UnsupportedFormatError,
                  "is quantized"),
    "complex": (lambda m: group(m)["weights"][0].update(dtype="complex64"), UnsupportedFormatError,
                "complex64"),
    "other shapes": (lambda m: group(m)["weights"][0].update(shape=[108, 256]), ModelFileError, "dense_1"),
    "a layer less": (lambda m: layers(m).pop(), UnsupportedModelError, "has the layers"),
    "layers of nothing": (lambda m: layers(m).__setitem__(0, None), UnsupportedModelError, "has the layers"),
    "relu": (lambda m: layers(m)[3]["config"].update(activation="relu"), UnsupportedModelError, "relu"),
    "backwards": (lambda m: layers(m)[2]["config"].update(go_backwards=True), UnsupportedModelError,
                  "go_backwards"),
    "two activations": (lambda m: layers(m)[3]["config"].update(recurrent_activation="sigmoid"),
                        UnsupportedModelError, "recurrent_activation"),
    "connected elsewhere": (lambda m: layers(m)[4].update(inbound_nodes=nested(3)), UnsupportedModelError,
                            "connects"),
    "no units": (lambda m: layers(m)[2]["config"].update(units=-1), ModelFileError, "units"),
    "other units": (lambda m: layers(m)[2]["config"].update(units=128), ModelFileError, "dense_1"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_hostile_layers_model_is_refused(zoo: Path, tmp_path: Path, case: str) -> None:
    edit, kind, match = MODELS[case]
    refused(edited(tmp_path, zoo, TRANSLATOR, "model.json", edit), kind, match)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda m: m.pop("input_token_index"), "input_token_index"),
        (lambda m: m["target_token_index"].pop("\u203d"), "dense_1"),
        (lambda m: m.update(max_encoder_seq_length=10**9), "max_encoder_seq_length"),
        (lambda m: m.update(target_token_index={"a": 0}), "lacks the character"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(
    zoo: Path, tmp_path: Path, edit: Callable[[Any], Any], match: str
) -> None:
    refused(edited(tmp_path, zoo, TRANSLATOR, "metadata.json", edit), ModelFileError, match)


def test_json_that_is_nested_too_deeply_or_too_large_is_refused(zoo: Path, tmp_path: Path) -> None:
    for name, file in ((LETTERS, "manifest.json"), (TRANSLATOR, "model.json")):
        folder = tmp_path / name
        shutil.copytree(zoo / name, folder)
        for depth in (400, 900, 1_000, 100_000):
            text = '{"weightsManifest":' + "[" * depth + "]" * depth + "}"
            (folder / file).write_text(text)
            with pytest.raises(EduceError):
                checkpoint.load(folder)
        with pytest.raises(LimitError):
            checkpoint.load(folder, Limits(card_bytes=100))


def test_a_link_out_of_the_folder_is_not_followed(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / LETTERS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "embedding").unlink()
    (tmp_path / "embedding").symlink_to(zoo / LETTERS / "embedding")
    refused(tmp_path, ModelFileError, "symbolic link")
