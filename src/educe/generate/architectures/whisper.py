"""Whisper (Radford et al., 2022, arxiv:2212.04356): from spectrograms of 30 seconds to text."""

from __future__ import annotations

import onnx_ir as ir

from educe.generate.architectures.bart import Side, Style
from educe.generate.architectures.encoder_decoder import (
    EncoderDecoderGraphs,
    SourceGraph,
    TargetGraph,
    first_of,
)
from educe.generate.configuration import Configuration

_STYLE = Style(True, False, "learned", key_bias=False)
_MOST_POSITIONS = 1 << 16
_TABLES = r"proj_out\.weight"


def whisper(source: SourceGraph, target: TargetGraph, config: Configuration) -> EncoderDecoderGraphs:
    """Build `whisper`; its encoder reads `features` f32[sounds, mel bins, 2 · rows of a sound]."""
    encoder, decoder = Side(source, config, _STYLE, "encoder"), Side(target, config, _STYLE, "decoder")
    most_source = config.integer("max_source_positions", 1500, most=_MOST_POSITIONS)
    most_target = config.integer("max_target_positions", 448, most=_MOST_POSITIONS)
    bins, hidden = config.integer("num_mel_bins", 80), encoder.hidden
    states = encoder.encoded(_heard(source, bins, hidden, most_source))
    for number in range(decoder.depth):
        source.keep(*decoder.kept(source, states, number), decoder.layout)
    words = config.integer("vocab_size"), hidden
    x = target.embedding(decoder.table, words, target.tokens)
    positions = target.weight("model.decoder.embed_positions.weight", (most_target, hidden))
    x = target.call("Add", x, target.call("Gather", positions, target.positions))
    last = target.call("Gather", decoder.decoded(x), target.rows)
    logits = target.linear(last, first_of(target, ["proj_out", decoder.table]), words)
    source.weights.ignore(_TABLES)
    return EncoderDecoderGraphs(source.finish_states(states), target.finish(logits), most_source, most_target)


def _heard(graph: SourceGraph, bins: int, hidden: int, count: int) -> ir.Value:
    """Return the rows of all sounds one after the other, f32[sounds · count, hidden]."""
    x = graph.features(bins, 2 * count)
    for number, depth in ((1, bins), (2, hidden)):
        at = f"model.encoder.conv{number}"
        kernel, bias = graph.weight(f"{at}.weight", (hidden, depth, 3)), graph.weight(f"{at}.bias", (hidden,))
        x = graph.activation(graph.call("Conv", x, kernel, bias, pads=[1, 1], strides=[number]), "gelu")
    x = graph.call("Transpose", x, perm=[0, 2, 1])
    x = graph.call("Add", x, graph.weight("model.encoder.embed_positions.weight", (count, hidden)))
    return graph.call("Reshape", x, graph.shape(-1, hidden))
