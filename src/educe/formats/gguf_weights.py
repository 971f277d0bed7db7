"""GGUF's tensors under Hugging Face's names, with what converters did to them undone.

Converters reorder the rows of llama's queries and keys, transpose GPT-2's products and add 1 to Gemma's
norms. Rows are quantised each by itself, so that they are put back as raw blocks, without loss.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from educe.errors import ModelFileError
from educe.formats.folder import shown
from educe.model.checkpoint import Weight
from educe.model.encodings import ENCODINGS

_Undo = Callable[[Weight], Weight]

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_OF_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_NORMS_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_NEOX_TOP = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
_NEOX_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_LAYERS: dict[str, dict[str, str]] = {
    "mixtral": _LAYER | _OF_MIXTRAL,
    "phi3": _LAYER | {"ffn_up": "mlp.gate_up_proj"},
    "gemma2": _LAYER | _NORMS_AFTER | {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3_text": _LAYER | _NORMS_AFTER | {"ffn_norm": "pre_feedforward_layernorm"},
    "olmo2": _LAYER | _NORMS_AFTER,
    "olmo3": _LAYER | _NORMS_AFTER,
    "gpt2": _GPT2_LAYER,
    "gpt_neox": _NEOX_LAYER,
}
_TOPS = {"gpt2": (_GPT2_TOP, "transformer.h"), "gpt_neox": (_NEOX_TOP, "gpt_neox.layers")}
_READ_ELSEWHERE = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight|blk\.[0-9]+\.attn_rot_embd.*")
_PARTS = re.compile(r"(?:blk\.([0-9]{1,4})\.)?([a-z_0-9]+)(?:\.([0-9]{1,4}))?\.(weight|bias)")
_MOST_WEIGHTS = 1 << 17

_ADJACENT = frozenset({"llama", "mistral", "mixtral", "granite", "smollm3"})
"""The models whose heads GGUF keeps with the two elements that rotate together side by side."""


class Weights(Mapping[str, Weight]):
    """The weights of a file under Hugging Face's names; what must be put back is so when first asked for.

    A tensor that the architecture does not have keeps GGUF's name.

    Args:
        tensors: The file's tensors under GGUF's names.
        config: The fields of config.json.

    Raises:
        ModelFileError: two tensors are one weight, or a shape does not fit the number of heads.
    """

    def __init__(self, tensors: Mapping[str, Weight], config: Mapping[str, Any]) -> None:
        self._as_written: dict[str, Weight] = {}
        self._undo: dict[str, _Undo] = {}
        self._known: dict[str, Weight] = {}
        for name, tensor in tensors.items():
            if not _READ_ELSEWHERE.fullmatch(name):
                self._add(name, tensor, config)

    @property
    def decoded(self) -> list[str]:
        """The names of the quantised weights that cannot be put back but as f32."""
        return [
            name
            for name, undo in self._undo.items()
            if undo is Weight.transposed and _is_quantised(self._as_written[name])
        ]

    def __getitem__(self, name: str) -> Weight:
        weight = self._known.get(name)
        if weight is None:
            weight = self._as_written[name]
            weight = self._known[name] = self._undo[name](weight) if name in self._undo else weight
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._as_written)

    def __len__(self) -> int:
        return len(self._as_written)

    def _add(self, name: str, tensor: Weight, config: Mapping[str, Any]) -> None:
        undo = _undoing(name, tensor, config)
        for weight in _renamed(name, tensor, str(config["model_type"])):
            if weight.name in self._as_written or len(self) == _MOST_WEIGHTS:
                raise _error(tensor, f"is a second {shown(weight.name)}, or one weight of too many")
            self._as_written[weight.name] = weight
            if undo is not None:
                self._undo[weight.name] = undo


def _renamed(name: str, tensor: Weight, model_type: str) -> Iterator[Weight]:
    """Yield the weight that a tensor is, or those of each expert, over the same memory."""
    top, layers = _TOPS.get(model_type, (_TOP, "model.layers"))
    parts = _PARTS.fullmatch(name)
    if parts is None:
        yield tensor
        return
    block, stem, expert, kind = parts.groups()
    known = top if block is None else _LAYERS.get(model_type, _LAYER)
    template = known.get(stem if expert is None else f"{stem}_exps")
    if template is None or ("{}" in template and expert is None and len(tensor.shape) != 3):
        yield tensor
        return
    full = f"{template}.{kind}" if block is None else f"{layers}.{int(block)}.{template}.{kind}"
    if "{}" not in template or expert is not None:
        yield tensor.renamed(full.format(expert))
        return
    for index in range(tensor.shape[0]):
        part = tensor.cut(index, index + 1, full.format(index))
        yield dataclasses.replace(part, shape=part.shape[1:])


def _undoing(name: str, tensor: Weight, config: Mapping[str, Any]) -> _Undo | None:
    """Return what undoes the converter's change of a tensor, or None if there was none."""
    model_type, stem = config["model_type"], name.rpartition(".")[0].rpartition(".")[2]
    if model_type in _ADJACENT and stem in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if stem == "attn_q" else "num_key_value_heads"]
        return _reordering(tensor, (heads, -1, 2), axis=1)
    if model_type == "gpt_neox" and stem == "attn_qkv":
        return _reordering(tensor, (3, config["num_attention_heads"], -1), axis=0)
    if model_type in ("gemma2", "gemma3_text") and name.endswith("norm.weight"):
        return _less_one
    if model_type == "gpt2" and len(tensor.shape) == 2 and stem in _GPT2_LAYER:
        return Weight.transposed
    return None


def _reordering(tensor: Weight, sizes: tuple[int, ...], axis: int) -> _Undo:
    """Return what exchanges `axis` and the one after it, where the rows lie as `sizes`; one of them is -1."""
    rows, divisor = tensor.shape[0], -math.prod(sizes)
    if rows % divisor:
        raise _error(tensor, f"has {rows:,} rows, which is no multiple of {divisor:,}")
    order = np.arange(rows).reshape(sizes).swapaxes(axis, axis + 1).reshape(-1)

    return lambda weight: weight.taken(order)


def _less_one(weight: Weight) -> Weight:
    values = weight.array() - np.float32(1)
    return Weight(weight.name, weight.shape, "F32", values.reshape(-1).view(np.uint8))


def _is_quantised(weight: Weight) -> bool:
    return ENCODINGS[weight.encoding].block_elements > 1


def _error(tensor: Weight, cause: str) -> ModelFileError:
    return ModelFileError(
        cause, place=f"tensor {shown(tensor.name)}", remedy="download or convert the file again"
    )
