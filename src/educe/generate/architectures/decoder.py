"""`Decoder`: the parts that Llama's relatives are made of, under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from educe.errors import UnsupportedModelError, nearest
from educe.generate.architectures.base import StepGraph
from educe.generate.cache import CacheLayout
from educe.generate.configuration import Configuration
from educe.generate.rotary import Rotary

Attend: TypeAlias = Callable[[ir.Value, str, int], ir.Value]
"""From normed rows, the name of a layer and its number: what attention adds."""

Feed: TypeAlias = Callable[[ir.Value, str], ir.Value]
"""From normed rows and the name of a layer: what its feed-forward part adds."""

NORMS_BEFORE = ("input_layernorm", "", "post_attention_layernorm", "")
"""Norms before attention and before the feed-forward part."""

MOST_LAYERS = 4096
"""Layers that a configuration may ask for."""

_MOST_FEATURES = 1 << 16

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of attention: over all tokens before one, and over a window of them."""


class Decoder:
    """The parts of a decoder: root-mean-square norms, rotary grouped attention, gated feed-forward layers.

    Args:
        step: The graph under construction.
        config: The model's configuration.
        norm_plus: What is added to the weights of norms.
        activation: The activation of gates, if the configuration does not say.

    Attributes:
        hidden: Features of a token between the layers.
        inner: Features of a token within a feed-forward part.
        activation: The activation of gates.
        depth: How many layers there are.
        heads: Heads of queries.
        layout: Heads of keys and values, and the features of a head.

    Raises:
        ModelFileError: the configuration has a field that cannot be.
    """

    def __init__(
        self, step: StepGraph, config: Configuration, *, norm_plus: float = 0.0, activation: str = "silu"
    ) -> None:
        self._step, self._config, self._plus = step, config, norm_plus
        step.weights.ignore(r".*\.rotary_emb\.inv_freq")
        self.hidden = config.integer("hidden_size")
        self.inner = config.integer("intermediate_size")
        self.depth = config.integer("num_hidden_layers", most=MOST_LAYERS)
        self.heads = config.integer("num_attention_heads")
        features = config.integer("head_dim", max(1, self.hidden // self.heads), most=_MOST_FEATURES)
        self.layout = CacheLayout(config.integer("num_key_value_heads", self.heads), features)
        if self.heads % self.layout.heads:
            raise config.error("num_key_value_heads", f"does not divide {self.heads:,} heads of queries")
        self._epsilon = config.number("rms_norm_eps", above=0)
        self.activation = config.text("hidden_activation", config.text("hidden_act", activation))

    # What the configuration says of each layer ----------------------------------------------------------

    def rotary(self, layer_type: str = FULL, config: Configuration | None = None) -> str:
        """Let layers of a kind turn queries and keys, and return the name of their angles."""
        angles = Rotary(config or self._config, self.layout.features, layer_type)
        self._step.rotaries[layer_type] = angles
        return layer_type

    def layer_types(self, slides: Callable[[int], bool]) -> tuple[str, ...]:
        """Return the kind of attention of each layer.

        Args:
            slides: Whether a layer's attention is a sliding window, if the configuration does not say.

        Raises:
            UnsupportedModelError: a kind is unknown.
        """
        ruled = tuple(SLIDING if slides(layer) else FULL for layer in range(self.depth))
        found = self._config.texts("layer_types", ruled)
        if len(found) != self.depth:
            raise self._config.error("layer_types", f"has {len(found):,} items for {self.depth:,} layers")
        for kind in found:
            if kind not in (FULL, SLIDING):
                reason = f"layers of the kind {kind!r} are not run yet"
                raise UnsupportedModelError(reason, remedy=nearest(kind, (FULL, SLIDING)))
        return found

    def windows(self, slides: Callable[[int], bool]) -> list[int]:
        """Return how many tokens each layer sees, 0 for all; `slides` as in `layer_types`."""
        size = self._config.integer("sliding_window", 0, least=0)
        return [size if kind == SLIDING else 0 for kind in self.layer_types(slides)]

    # Parts ----------------------------------------------------------------------------------------------

    def embedded(self, factor: float = 1.0) -> ir.Value:
        """Return the rows of the tokens, times a factor, f32[T, hidden]."""
        table = self._step.embedding("model.embed_tokens", self._table_shape, self._step.tokens)
        return self._step.scaled(table, factor)

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """Return rows under a norm."""
        return self._step.rms_norm(x, name, self.hidden, self._epsilon, plus=self._plus)

    def norm_of_heads(self, x: ir.Value, name: str, heads: int) -> ir.Value:
        """Return [T, heads · features] with each head by itself under a norm that all heads share."""
        features = self.layout.features
        split = self._step.by_head(x, features)
        normed = self._step.rms_norm(split, name, features, self._epsilon, plus=self._plus)
        return self._step.joined(normed)

    def norm_of_rows(self, x: ir.Value, name: str, heads: int) -> ir.Value:
        """Return [T, heads · features] under one norm."""
        return self._step.rms_norm(x, name, heads * self.layout.features, self._epsilon, plus=self._plus)

    def attention(
        self,
        x: ir.Value,
        at: str,
        *,
        rotary: str = "",
        norm: Callable[[ir.Value, str, int], ir.Value] | None = None,
        scale: float = 0.0,
        softcap: float = 0.0,
        window: int = 0,
        bias: bool = False,
        bias_out: bool = False,
    ) -> ir.Value:
        """Return the attention of a layer.

        Args:
            x: The rows, [T, hidden].
            at: The name of the layer.
            rotary: By which angles queries and keys are turned; by none if empty.
            norm: The norm of queries and keys, if they have one.
            scale: What scores are multiplied by; 1 / √features if 0.
            softcap: The bound of scores; none if 0.
            window: How many tokens a token sees; all before it if 0.
            bias: Whether queries, keys and values have a bias.
            bias_out: Whether the output has one.
        """
        step, features, at = self._step, self.layout.features, f"{at}.self_attn"
        of_heads = {"q": self.heads, "k": self.layout.heads, "v": self.layout.heads}
        q, k, v = (
            step.linear(x, f"{at}.{part}_proj", (heads * features, self.hidden), bias=bias)
            for part, heads in of_heads.items()
        )
        if norm is not None:
            q, k = norm(q, f"{at}.q_norm", self.heads), norm(k, f"{at}.k_norm", self.layout.heads)
        if rotary:
            q, k = step.rotate(q, self.heads, rotary), step.rotate(k, self.layout.heads, rotary)
        out = step.attention(q, k, v, self.heads, self.layout, scale or features**-0.5, window, softcap)
        return step.linear(out, f"{at}.o_proj", (self.hidden, self.heads * features), bias=bias_out)

    def gated(self, x: ir.Value, at: str, *, bias: bool = False) -> ir.Value:
        """Return the gated feed-forward part of a layer: Shazeer, 2020, arxiv.org/abs/2002.05202."""
        step, at = self._step, f"{at}.mlp"
        gate, up = (
            step.linear(x, f"{at}.{part}_proj", (self.inner, self.hidden), bias=bias)
            for part in ("gate", "up")
        )
        product = step.call("Mul", step.activation(gate, self.activation), up)
        return step.linear(product, f"{at}.down_proj", (self.hidden, self.inner), bias=bias)

    def layers(
        self,
        x: ir.Value,
        attend: Attend,
        feed: Feed,
        *,
        norms: tuple[str, str, str, str] = NORMS_BEFORE,
        residual: float = 1.0,
    ) -> ir.Value:
        """Return rows after all layers: each adds attention, then its feed-forward part.

        Args:
            x: The rows, [T, hidden].
            attend: The attention of a layer.
            feed: Its feed-forward part.
            norms: Those before and after attention, before and after the feed-forward part; empty for none.
            residual: What both parts are multiplied by before they are added.
        """
        for layer in range(self.depth):
            at = f"model.layers.{layer}"

            def normed(x: ir.Value, norm: str, at: str = at) -> ir.Value:
                return self.norm(x, f"{at}.{norm}") if norm else x

            seen = normed(attend(normed(x, norms[0]), at, layer), norms[1])
            x = self._step.call("Add", x, self._step.scaled(seen, residual))
            fed = normed(feed(normed(x, norms[2]), at), norms[3])
            x = self._step.call("Add", x, self._step.scaled(fed, residual))
        return x

    def logits(self, x: ir.Value) -> ir.Value:
        """Return the logits of the rows that are wanted, f32[R, vocabulary]."""
        last = self.norm(self._step.call("Gather", x, self._step.rows), "model.norm")
        return self._step.head(last, "lm_head", "model.embed_tokens", self._table_shape, self._config)

    @property
    def _table_shape(self) -> tuple[int, int]:
        return self._config.integer("vocab_size"), self.hidden
