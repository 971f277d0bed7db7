"""CTranslate2's names of a pre-norm Transformer's variables, as Hugging Face's `m2m_100` has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from educe.errors import ModelFileError, UnsupportedModelError
from educe.formats.folder import shown
from educe.model.checkpoint import Weight

# Of fused projections, the parts from the first row to the last.
_SINGLE = {
    "encoder/embeddings": ("model.encoder.embed_tokens",),
    "encoder/embeddings_0": ("model.encoder.embed_tokens",),
    "decoder/embeddings": ("model.decoder.embed_tokens",),
    "decoder/projection": ("lm_head",),
    "encoder/layer_norm": ("model.encoder.layer_norm",),
    "decoder/layer_norm": ("model.decoder.layer_norm",),
}
_PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d{1,6})/(.+)/(weight|bias|gamma|beta)")
_OUTER = re.compile(r"(.+)/(weight|bias|gamma|beta)")
_ENDINGS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_ACTIVATIONS = ("relu", "gelu_new", "silu", "gelu", "quick_gelu", "tanh")
# What the numbers beside the weights must be, where they are there.
_EXPECTED = {
    "pre_norm": 1, "embeddings_merge": 0, "alibi": 0, "alibi_use_positive_positions": 0, "scale_alibi": 0,
    "start_from_zero_embedding": 0, "scale_outputs": 1,
}  # fmt: skip
_READ = {
    "num_heads", "activation", "scale_embeddings", "alignment_layer",
    "alignment_heads", "with_source_bos", "with_source_eos", "with_target_bos", "multi_query_attention",
}  # fmt: skip


def refuse_variants(attributes: Mapping[str, float], path: Path) -> None:
    """Raise `UnsupportedModelError` if the numbers beside the weights describe another network."""
    for name, value in attributes.items():
        own = name.rsplit("/", 1)[-1]
        if value != _EXPECTED.get(own, value) or own not in {*_EXPECTED, *_READ}:
            raise UnsupportedModelError(
                f"has {shown(name)} = {value:g}; of CTranslate2's Transformers, Educe reads the pre-norm one "
                "with sinusoidal positions",
                path=path,
                remedy="use the Hugging Face folder that it was converted from",
            )


def renamed(variables: Mapping[str, Weight], path: Path) -> dict[str, Weight]:
    """Return the weights under Hugging Face's names, fused ones cut apart, over the same memory.

    Raises:
        UnsupportedModelError: a variable has no place in this network.
        ModelFileError: the rows of a fused weight cannot be cut.
    """
    found: dict[str, Weight] = {}
    for name, weight in variables.items():
        targets = list(_targets(name))
        if not targets:
            raise UnsupportedModelError(
                f"has the variable {shown(name)}, which the pre-norm Transformer does not have",
                path=path,
                remedy="use the Hugging Face folder that it was converted from",
            )
        rows, rest = divmod(weight.shape[0], len(targets))
        if rest:
            raise ModelFileError(
                f"has {weight.shape[0]:,} rows for {len(targets)} projections",
                path=path,
                place=f"variable {shown(name)}",
                remedy="convert the model again",
            )
        for number, target in enumerate(targets):
            found[target] = weight.cut(number * rows, (number + 1) * rows, target)
    return found


def _targets(name: str) -> Iterator[str]:
    layer, outer = _LAYER.fullmatch(name), _OUTER.fullmatch(name)
    if layer:
        for part in _PARTS.get(layer[3], ()):
            yield f"model.{layer[1]}.layers.{layer[2]}.{part}.{_ENDINGS[layer[4]]}"
    elif outer:
        for part in _SINGLE.get(outer[1], ()):
            yield f"{part}.{_ENDINGS[outer[2]]}"


def sizes(weights: Mapping[str, Weight], attributes: Mapping[str, float], path: Path) -> dict[str, Any]:
    """Return the configuration that the weights and the numbers beside them imply.

    Positions are those of `m2m_100` whose padding has the id 0: the first word has position 1.

    Raises:
        ModelFileError: a weight that tells a size is missing, or a number is out of range.
    """
    vocab_size, hidden = _shape(weights, "model.encoder.embed_tokens.weight", path)
    config: dict[str, Any] = {
        "architectures": ["M2M100ForConditionalGeneration"],
        "model_type": "m2m_100",
        "is_encoder_decoder": True,
        "d_model": hidden,
        "vocab_size": vocab_size,
        "decoder_vocab_size": _shape(weights, "model.decoder.embed_tokens.weight", path)[0],
        "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": 1024,
        "scale_embedding": _shared(attributes, "scale_embeddings", 1, path) == 1,
        "activation_function": _activation(attributes, path),
    }
    for side in ("encoder", "decoder"):
        heads = attributes.get(f"{side}/num_heads", attributes["num_heads"])
        if not 1 <= heads <= hidden or hidden % heads:
            raise ModelFileError(
                f"has {heads:g} heads for {hidden:,} elements", path=path, remedy="convert the model again"
            )
        config[f"{side}_attention_heads"] = int(heads)
        config[f"{side}_ffn_dim"] = _shape(weights, f"model.{side}.layers.0.fc1.weight", path)[0]
        config[f"{side}_layers"] = _num_layers(weights, side)
    return config


def _activation(attributes: Mapping[str, float], path: Path) -> str:
    kind = _shared(attributes, "activation", 0, path)
    if 0 <= kind < len(_ACTIVATIONS):
        return _ACTIVATIONS[kind]
    raise ModelFileError(
        f"has the activation {kind}, which does not exist", path=path, remedy="convert the model again"
    )


def _shared(attributes: Mapping[str, float], name: str, default: int, path: Path) -> int:
    """Return the whole number that encoder and decoder both have."""
    values = {value for key, value in attributes.items() if key.rsplit("/", 1)[-1] == name} or {default}
    value = values.pop()
    if values or type(value) is not int:
        raise UnsupportedModelError(
            f"has for {name!r} no one whole number, but {value:g} and {sorted(values)}",
            path=path,
            remedy="use the Hugging Face folder that it was converted from",
        )
    return value


def _num_layers(weights: Mapping[str, Weight], side: str) -> int:
    start = f"model.{side}.layers."
    return len({name.split(".")[3] for name in weights if name.startswith(start)})


def _shape(weights: Mapping[str, Weight], name: str, path: Path) -> tuple[int, int]:
    weight = weights.get(name)
    if weight is not None and len(weight.shape) == 2:
        return weight.shape[0], weight.shape[1]
    raise ModelFileError(
        f"has no matrix for {name!r}", path=path, remedy="download the model again, or convert it again"
    )
