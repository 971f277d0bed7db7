"""ml5's folders of a letter LSTM: ``manifest.json`` with f32 arrays and their files, and ``vocab.json``.

The network is TensorFlow's: an embedding, BasicLSTMCells with kernels [inputs + hidden, 4 · hidden], their
gates in the order input, candidate, forget and output, 1 added to the forget gate; and a linear layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from educe.errors import ModelFileError
from educe.formats.folder import Folder, are_sizes, shown
from educe.formats.recurrent import characters, check_shapes, lstm_layer
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Weight

MANIFEST = "manifest.json"
VOCABULARY = "vocab.json"
_CELL = "rnnlm/multi_rnn_cell/cell_{}/basic_lstm_cell/{}"
_EMBEDDING, _HEAD, _HEAD_BIAS = "embedding", "rnnlm/softmax_w", "rnnlm/softmax_b"
# A number that training kept beside the weights.
_UNUSED = re.compile(r"Variable(_\d+)?")
_FIELDS = {"filename", "shape"}
_MAX_LAYERS = 100


def sniff(path: Path) -> bool:
    """Say whether the folder `path` has both files."""
    return all((path / name).is_file() for name in (MANIFEST, VOCABULARY))


def load(path: Path, limits: Limits) -> Checkpoint:
    """Read a folder.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedModelError: the network is another one.
        LimitError: a file is larger than `limits` allow.
    """
    folder = Folder(path, limits)
    entries = _entries(folder.read_object(MANIFEST), path / MANIFEST)
    config = _config({name: shape for name, (_, shape) in entries.items()}, path / MANIFEST)
    vocabulary = characters(folder.read_object(VOCABULARY, "tokenizer_bytes"), path / VOCABULARY)
    if len(vocabulary.tokens) != config["vocab_size"]:
        raise ModelFileError(
            f"has {len(vocabulary.tokens):,} characters, and the model {config['vocab_size']:,}",
            path=path / VOCABULARY,
            remedy="use the file that came with the weights",
        )
    arrays = {name: _array(folder, name, *entry) for name, entry in entries.items()}
    return Checkpoint(
        model_type="lstm",
        config=config,
        weights=_weights(arrays, config),
        tokenizer=TokenizerFiles(source=vocabulary),
        generation={},
        path=path,
        content=folder.ordered_content(),
    )


def _entries(manifest: Mapping[str, Any], path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the file and the shape of each array that is used."""
    entries = {}
    for name, entry in manifest.items():
        if not isinstance(entry, dict) or entry.keys() != _FIELDS or not isinstance(entry["filename"], str):
            raise _error(f"is described by {shown(entry)}, not by {sorted(_FIELDS)}", name, path)
        if not are_sizes(entry["shape"]):
            raise _error(f"has the shape {shown(entry['shape'])}", name, path)
        if not _UNUSED.fullmatch(name):
            entries[name] = entry["filename"], tuple(entry["shape"])
    return entries


def _config(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, int]:
    """Return the sizes of the network, once all arrays have the shapes that follow from them."""
    layers = 0
    while layers < _MAX_LAYERS and _CELL.format(layers, "kernel") in shapes:
        layers += 1
    vocab_size, embedding = _matrix(shapes, _EMBEDDING, path)
    hidden, _ = _matrix(shapes, _HEAD, path)
    expected = {
        _EMBEDDING: (vocab_size, embedding),
        _HEAD: (hidden, vocab_size),
        _HEAD_BIAS: (vocab_size,),
    }
    for layer in range(max(1, layers)):
        inputs = hidden if layer else embedding
        expected[_CELL.format(layer, "kernel")] = inputs + hidden, 4 * hidden
        expected[_CELL.format(layer, "bias")] = (4 * hidden,)
    check_shapes(shapes, expected, path)
    return {
        "vocab_size": vocab_size,
        "embedding_size": embedding,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
    }


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str, path: Path) -> tuple[int, int]:
    shape = shapes.get(name, ())
    if len(shape) != 2 or not all(shape):
        raise _error(f"has the shape {shown(list(shape))}, not that of a matrix", name, path)
    return shape[0], shape[1]


def _array(folder: Folder, name: str, file: str, shape: tuple[int, ...]) -> Weight:
    content = folder.map(file)
    if content.size != 4 * math.prod(shape):
        raise ModelFileError(
            f"has {content.size:,} bytes, where f32{list(shape)} takes {4 * math.prod(shape):,}",
            path=folder.path / file,
            place=f"weight {shown(name)}",
            remedy="download the file again",
        )
    return Weight(name, shape, "F32", content)


def _weights(arrays: Mapping[str, Weight], config: Mapping[str, int]) -> dict[str, Weight]:
    weights = {
        "embedding.weight": arrays[_EMBEDDING].renamed("embedding.weight"),
        "head.weight": arrays[_HEAD].transposed().renamed("head.weight"),
        "head.bias": arrays[_HEAD_BIAS].renamed("head.bias"),
    }
    for layer in range(config["num_hidden_layers"]):
        kernel, bias = (arrays[_CELL.format(layer, part)] for part in ("kernel", "bias"))
        inputs = kernel.shape[0] - config["hidden_size"]
        parts = kernel.cut(0, inputs), kernel.cut(inputs, kernel.shape[0])
        weights |= lstm_layer(f"lstm.*_l{layer}", *parts, bias, gates="igfo", forget_bias=1)
    return weights


def _error(cause: str, name: str, path: Path) -> ModelFileError:
    return ModelFileError(
        cause, path=path, place=f"weight {shown(name)}", remedy="use the file that came with the weights"
    )
