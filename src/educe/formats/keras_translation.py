"""The letter translator of Keras's examples, as TensorFlow.js keeps it: two LSTMs, and ``metadata.json``.

One LSTM reads the letters of a sentence, the other begins with its states and writes the translation's, from
a tab to a line feed: Sutskever, Vinyals and Le, 2014, arxiv.org/abs/1409.3215.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from educe.errors import UnsupportedModelError
from educe.formats import tensorflowjs
from educe.formats.folder import Folder, integer, shown
from educe.formats.recurrent import characters, check_shapes, lstm_layer
from educe.limits import Limits
from educe.model.checkpoint import Checkpoint, TokenizerFiles, Weight

METADATA = "metadata.json"
_CLASSES = ("InputLayer", "InputLayer", "LSTM", "LSTM", "Dense")
_DECODER = 3
_FIELDS: dict[str, dict[str, Any]] = {
    "LSTM": {"activation": "tanh", "use_bias": True, "go_backwards": False, "return_state": True},
    "Dense": {"activation": "softmax", "use_bias": True},
}
_ACTIVATIONS = ("sigmoid", "hard_sigmoid")
_START, _END = "\t", "\n"
_MOST_LETTERS = 1_000


def load(path: Path, limits: Limits) -> Checkpoint:
    """Read a folder with model.json, its shards and metadata.json.

    Raises:
        ModelFileError: a file is missing or broken.
        UnsupportedFormatError: a weight is of a type that Educe does not read.
        UnsupportedModelError: the network is another one.
        LimitError: a file is larger than `limits` allow.
    """
    folder = Folder(path, limits)
    model = tensorflowjs.read(folder, limits)
    layers = _layers(model.topology, path / tensorflowjs.MODEL)
    metadata, file = folder.read_object(METADATA), path / METADATA
    source = characters(metadata.get("input_token_index"), file, "input_token_index")
    target = characters(metadata.get("target_token_index"), file, "target_token_index", bos=_START, eos=_END)
    config = {
        "vocab_size": len(source.tokens),
        "decoder_vocab_size": len(target.tokens),
        "hidden_size": integer(layers[2]["config"], "units", path / tensorflowjs.MODEL),
        "recurrent_activation": layers[2]["config"]["recurrent_activation"],
        "max_source_length": integer(metadata, "max_encoder_seq_length", file, most=_MOST_LETTERS),
        "max_length": integer(metadata, "max_decoder_seq_length", file, most=_MOST_LETTERS),
    }
    generation = {
        "decoder_start_token_id": target.special["bos"],
        "eos_token_id": target.special["eos"],
        "max_length": config["max_length"],
    }
    return Checkpoint(
        model_type="lstm_translation",
        config=config,
        weights=_weights(model.weights, [layer["name"] for layer in layers], config, path),
        tokenizer=TokenizerFiles(source=source, target=target),
        generation=generation,
        path=path,
        content=folder.ordered_content(),
    )


def _layers(topology: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return the layers, once they are those of the translator and connected as its are."""
    network = _object(_object(topology.get("model_config", topology)).get("config"))
    found = network.get("layers")
    layers = [_object(layer) for layer in found] if isinstance(found, list) else []
    if tuple(layer.get("class_name") for layer in layers) != _CLASSES:
        raise _other(f"has the layers {shown([layer.get('class_name') for layer in layers])}", path)
    source, target, encoder, decoder, head = names = [layer.get("name") for layer in layers]
    inputs: list[list[Any]] = [
        [],
        [],
        [[[source, 0, 0, {}]]],
        [[[target, 0, 0, {}], [encoder, 0, 1, {}], [encoder, 0, 2, {}]]],
        [[[decoder, 0, 0, {}]]],
    ]
    ends = [[source, 0, 0], [target, 0, 0]], [[head, 0, 0]]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise _other(f"has layers called {shown(names)}", path)
    if (network.get("input_layers"), network.get("output_layers")) != ends or inputs != [
        layer.get("inbound_nodes") for layer in layers
    ]:
        raise _other("connects its layers in another way", path)
    activation = _object(layers[2].get("config")).get("recurrent_activation")
    if activation not in _ACTIVATIONS:
        raise _other(f"has the recurrent_activation {shown(activation)}", path)
    _check_fields(layers, {"recurrent_activation": activation}, path)
    return layers


def _check_fields(layers: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], path: Path) -> None:
    for number, layer in enumerate(layers):
        fields = _object(layer.get("config"))
        expected = _FIELDS.get(layer["class_name"], {})
        if layer["class_name"] == "LSTM":
            expected = {**expected, **shared, "return_sequences": number == _DECODER}
        for name, value in expected.items():
            if fields.get(name) != value:
                raise _other(f"has {name} = {shown(fields.get(name))} in {shown(layer['name'])}", path)


def _weights(
    arrays: Mapping[str, Weight], layers: Sequence[str], config: Mapping[str, Any], path: Path
) -> dict[str, Weight]:
    _, _, encoder, decoder, head = layers
    hidden, letters = config["hidden_size"], config["decoder_vocab_size"]
    expected = {f"{head}/kernel": (hidden, letters), f"{head}/bias": (letters,)}
    for layer, inputs in ((encoder, config["vocab_size"]), (decoder, letters)):
        expected[f"{layer}/kernel"] = inputs, 4 * hidden
        expected[f"{layer}/recurrent_kernel"] = hidden, 4 * hidden
        expected[f"{layer}/bias"] = (4 * hidden,)
    check_shapes({name: weight.shape for name, weight in arrays.items()}, expected, path)
    weights = {
        "head.weight": arrays[f"{head}/kernel"].transposed().renamed("head.weight"),
        "head.bias": arrays[f"{head}/bias"].renamed("head.bias"),
    }
    for name, layer in (("encoder", encoder), ("decoder", decoder)):
        parts = (arrays[f"{layer}/{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
        weights |= lstm_layer(f"{name}.*_l0", *parts, gates="ifgo")
    return weights


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _other(cause: str, path: Path) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{cause}; of TensorFlow.js's models, Educe reads the letter translator of Keras's examples",
        path=path,
        remedy="convert the original to ONNX",
    )
