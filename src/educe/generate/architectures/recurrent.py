"""Recurrent networks: what they have read is a state of fixed size, not keys and values of every token.

Weights have the names, the layout and the order of gates of PyTorch's modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from educe.errors import UnsupportedModelError, nearest
from educe.generate.architectures.base import StepGraph
from educe.generate.cache import CacheFormat
from educe.generate.configuration import Configuration
from educe.model.checkpoint import Checkpoint

_MOST_LAYERS = 100
_MOST_FEATURES = 1 << 20
# The functions of gates, candidates and output, with their parameters.
_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "hard_sigmoid": {
        "activations": ["HardSigmoid", "Tanh", "Tanh"],
        "activation_alpha": [0.2],
        "activation_beta": [0.5],
    },
}
# The operator has the output gate before the forget gate and the candidate.
_GATES = [0, 3, 1, 2]
_STATES = ("hidden", "cell")


class RecurrentGraph(StepGraph):
    """The graph of a step that reads the next tokens of some sequences, each from a state of its own.

    Inputs, for at most T tokens of each of N sequences, R of which in all give logits: `tokens` i64[N, T];
    `lengths` i32[N], how many of a row count; `rows` i64[R], which of the N · T places give logits; and
    f32[N, 1, hidden] for each of `states`. Outputs: `logits` f32[R, vocabulary]; and each state after the
    tokens, as ``next.NAME``.

    Attributes:
        states: The features of each state, by name.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, CacheFormat("f32", page=16))
        self.states: dict[str, int] = {}
        self._next: list[ir.Value] = []

    @property
    def tokens(self) -> ir.Value:
        """The tokens, i64[N, T]."""
        return self._input("tokens", ir.DataType.INT64, ["N", "T"])

    def lstm(self, x: ir.Value, name: str, inputs: int, hidden: int, activation: str = "sigmoid") -> ir.Value:
        """Return the hidden states of an LSTM over x, f32[N, T, hidden].

        The layer is that of Gers, Schmidhuber and Cummins, 2000, doi.org/10.1162/089976600300015015.

        Args:
            x: f32[N, T, inputs].
            name: The layer, with a * for the kind of weight, as in ``lstm.*_l0``.
            inputs: Features of x.
            hidden: Features of the state.
            activation: The function of the gates: ``sigmoid``, or Keras's ``hard_sigmoid``.

        Raises:
            UnsupportedModelError: there is no such function.
        """
        if activation not in _ACTIVATIONS:
            reason = f"gates with the activation {activation!r} are not run"
            raise UnsupportedModelError(reason, remedy=nearest(activation, _ACTIVATIONS))
        kernels = [
            self._gates(name.replace("*", part), [4 * hidden, size])
            for part, size in (("weight_ih", inputs), ("weight_hh", hidden))
        ]
        biases = [self._gates(name.replace("*", part), [4 * hidden]) for part in ("bias_ih", "bias_hh")]
        whole, *after = self.outputs(
            3,
            "LSTM",
            *(x, *kernels, self.call("Concat", *biases, axis=1)),
            self._input("lengths", ir.DataType.INT32, ["N"]),
            *(self._state(name.replace("*", part), hidden) for part in _STATES),
            hidden_size=hidden,
            layout=1,
            **_ACTIVATIONS[activation],
        )
        for part, state in zip(_STATES, after, strict=True):
            state.name = f"next.{name.replace('*', part)}"
            state.type = ir.TensorType(ir.DataType.FLOAT)
            self._next.append(state)
        return self.call("Squeeze", whole, self.shape(2))

    def one_hot(self, size: int) -> ir.Value:
        """Return rows of `size` numbers, 1 at the token and 0 elsewhere; all 0 for the token `size`."""
        depth = self.number(f"depth {size}", np.array(size, np.int64))
        values = self.number("off and on", np.array([0, 1], np.float32))
        return self.call("OneHot", self.tokens, depth, values)

    def logits(self, x: ir.Value, hidden: int, vocabulary: int) -> ir.Value:
        """Return those of the wanted places of x, f32[N, T, hidden], by the linear layer ``head``."""
        flat = self.call("Reshape", x, self.shape(-1, hidden))
        return self.linear(self.call("Gather", flat, self.rows), "head", [vocabulary, hidden], bias=True)

    def finish(self, output: ir.Value, name: str = "logits") -> ir.Model:
        """Return the graph of all nodes so far, with the states after the output."""
        graph = super().finish(output, name)
        graph.graph.outputs.extend(self._next)
        return graph

    def finish_states(self) -> ir.Model:
        """Return the graph of all nodes so far, whose outputs are the states after the tokens alone."""
        first, *self._next = self._next
        assert first.name is not None
        return self.finish(first, first.name)

    def _state(self, name: str, hidden: int) -> ir.Value:
        self.states[name] = hidden
        return self._input(name, ir.DataType.FLOAT, ["N", 1, hidden])

    def _gates(self, name: str, shape: Sequence[int]) -> ir.Value:
        """Return a weight as the operator has it: for one direction, gates in its order."""
        found = self.weights.take(name, shape)
        if found is None:
            return ir.Value(name=name)
        gates = found.array().reshape(len(_GATES), -1)[_GATES]
        return self.number(name, gates.reshape(1, *shape))


Build: TypeAlias = Callable[[RecurrentGraph, Configuration], ir.Model]


def lstm(step: RecurrentGraph, config: Configuration) -> ir.Model:
    """Build `lstm`, a language model: Graves, 2013, arxiv.org/abs/1308.0850."""
    vocabulary = config.integer("vocab_size")
    inputs = config.integer("embedding_size", most=_MOST_FEATURES)
    hidden = config.integer("hidden_size", most=_MOST_FEATURES)
    x = step.embedding("embedding", [vocabulary, inputs], step.tokens)
    for layer in range(config.integer("num_hidden_layers", most=_MOST_LAYERS)):
        x = step.lstm(x, f"lstm.*_l{layer}", hidden if layer else inputs, hidden)
    return step.finish(step.logits(x, hidden, vocabulary))


def lstm_encoder(step: RecurrentGraph, config: Configuration) -> ir.Model:
    """Build what reads in `lstm_translation`: Sutskever et al., 2014, arxiv.org/abs/1409.3215."""
    step.weights.ignore(r"(decoder|head)\..*")
    vocabulary, hidden = config.integer("vocab_size"), config.integer("hidden_size", most=_MOST_FEATURES)
    activation = config.text("recurrent_activation", "sigmoid")
    step.lstm(step.one_hot(vocabulary), "encoder.*_l0", vocabulary, hidden, activation)
    return step.finish_states()


def lstm_decoder(step: RecurrentGraph, config: Configuration) -> ir.Model:
    """Build what writes in `lstm_translation`, and begins with the states of what reads."""
    step.weights.ignore(r"encoder\..*")
    vocabulary = config.integer("decoder_vocab_size")
    hidden = config.integer("hidden_size", most=_MOST_FEATURES)
    activation = config.text("recurrent_activation", "sigmoid")
    x = step.lstm(step.one_hot(vocabulary), "decoder.*_l0", vocabulary, hidden, activation)
    return step.finish(step.logits(x, hidden, vocabulary))


RECURRENT: dict[str, Build] = {"lstm": lstm}
"""What builds the graph of each type of recurrent language model."""
