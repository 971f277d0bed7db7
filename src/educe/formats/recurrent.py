"""What the files of recurrent networks have in common: tables of characters, and LSTM layers of TensorFlow.

Such networks are in no library of Hugging Face; their weights are given PyTorch's names and layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from educe.errors import ModelFileError, UnsupportedModelError
from educe.formats.folder import shown
from educe.model.checkpoint import Vocabulary, Weight

_GATES = "ifgo"


def characters(table: Any, path: Path, place: str | None = None, **special: str) -> Vocabulary:
    """Return the tokenizer that a table of ids by character is.

    Args:
        table: The table, as its file has it.
        path: The file.
        place: Where in the file the table stands.
        special: The characters that stand for the special tokens of these names.

    Raises:
        ModelFileError: it is no table of characters whose ids are 0 and those that follow.
    """
    ids = table if isinstance(table, Mapping) else {}
    tokens = sorted(ids, key=lambda token: ids[token] if type(ids[token]) is int else -1)
    if not tokens or [ids[token] for token in tokens] != list(range(len(tokens))):
        cause = "is no table of characters whose ids are 0, 1, 2 and so on"
    elif odd := [token for token in tokens if not _is_character(token)]:
        cause = f"has the id {ids[odd[0]]:,} for {shown(odd[0])}, which is no character"
    elif lacking := [name for name, token in special.items() if token not in ids]:
        name = lacking[0]
        cause = f"lacks the character {shown(special[name])}, which is the token {name}"
    else:
        named = {name: ids[token] for name, token in special.items()}
        return Vocabulary("characters", tuple(tokens), special=named)
    raise ModelFileError(cause, path=path, place=place, remedy="use the file that came with the model")


def _is_character(token: str) -> bool:
    return len(token) == 1 and not "\ud800" <= token <= "\udfff"


def lstm_layer(
    name: str, kernel: Weight, recurrent: Weight, bias: Weight, *, gates: str, forget_bias: float = 0.0
) -> dict[str, Weight]:
    """Return the weights of a layer, as PyTorch's ``nn.LSTM`` calls and orders them.

    Args:
        name: The layer, with a * for the kind of weight, as in ``lstm.*_l0``.
        kernel: What multiplies inputs, [inputs, 4 · hidden].
        recurrent: What multiplies the hidden state, [hidden, 4 · hidden].
        bias: [4 · hidden].
        gates: The order of the input gate i, forget gate f, candidate g and output gate o.
        forget_bias: What is added to the forget gate beside the bias.
    """
    hidden = recurrent.shape[0]
    order = np.concatenate([np.arange(hidden) + gates.index(gate) * hidden for gate in _GATES])
    more = np.zeros((4, hidden), np.float32)
    more[_GATES.index("f")] = forget_bias
    extra = Weight("", (4 * hidden,), "F32", more.reshape(-1).view(np.uint8))
    parts = {
        "weight_ih": kernel.transposed().taken(order),
        "weight_hh": recurrent.transposed().taken(order),
        "bias_ih": bias.taken(order),
        "bias_hh": extra,
    }
    names = {part: name.replace("*", part) for part in parts}
    return {names[part]: weight.renamed(names[part]) for part, weight in parts.items()}


def check_shapes(
    found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], path: Path
) -> None:
    """Raise unless a file describes arrays of just these names and shapes.

    Raises:
        ModelFileError: one is missing, or has another shape.
        UnsupportedModelError: there are others, so that the network is another one.
    """
    for name, shape in expected.items():
        if name not in found:
            cause = f"lacks the weight {shown(name)}"
        elif tuple(found[name]) != tuple(shape):
            cause = f"has {shown(name)} as {shown(list(found[name]))}, not as {list(shape)}"
        else:
            continue
        raise ModelFileError(cause, path=path, remedy="use the file that came with the weights")
    if others := sorted(found.keys() - expected.keys()):
        raise UnsupportedModelError(
            f"has the weight {shown(others[0])}, which the network that Educe reads from such a file lacks",
            path=path,
            remedy="convert the model to ONNX",
        )
