"""`LSTM`, `GRU` and `RNN`: one product for the inputs of all steps, then one launch for the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from educe.compiler.emit import F32, F64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.recurrent import GATES, Activation, Cell
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.operators.product import cast, matrix_product
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_PLAIN = {name.lower(): name for name in ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")}
_WITH_ALPHA = {
    "leakyrelu": ("LeakyRelu", 0.01),
    "thresholdedrelu": ("ThresholdedRelu", 1.0),
    "elu": ("Elu", 1.0),
}
_WITH_BOTH = {"affine": (1.0, 0.0), "scaledtanh": (1.0, 1.0), "hardsigmoid": (0.2, 0.5)}
_MAX_GROUP = 48
"""Rows that go through the steps together, so that weights are read from afar once for them."""

_TILES = (1, 2, 4, 6, 9)

_DIRECTIONS = {"forward": (1, 1), "reverse": (1, 0), "bidirectional": (2, 1)}


@operator("LSTM")
def lstm(
    low: Lowering,
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    p: Tensor | None = None,
) -> list[Tensor]:
    """Every step's hidden state, the last one, and the last state of the cell."""
    return _Layer(low, call, x, w, r, b, lengths, h_0, c_0, p).lower()


@operator("GRU", "RNN")
def gru_or_rnn(
    low: Lowering,
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h_0: Tensor | None = None,
) -> list[Tensor]:
    """Every step's hidden state, and the last one."""
    return _Layer(low, call, x, w, r, b, lengths, h_0).lower()[:2]


@dataclass(frozen=True)
class _Sizes:
    steps: int
    rows: int
    inputs: int
    hidden: int
    directions: int


class _Layer:
    """One node with its inputs, all of the kind that is computed in."""

    def __init__(
        self,
        low: Lowering,
        call: Call,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h_0: Tensor | None = None,
        c_0: Tensor | None = None,
        p: Tensor | None = None,
    ) -> None:
        self.low, self.call, self.given = low, call, x.kind
        self.kind = F64 if x.kind is F64 else F32
        self.batch_first = bool(call.get("layout", 0))
        self.lengths = lengths
        self.x, self.w, self.r = self._computed(x), self._computed(w), self._computed(r)
        self.b, self.p = (None if each is None else self._computed(each) for each in (b, p))
        self.h_0, self.c_0 = (None if each is None else self._state(each) for each in (h_0, c_0))
        self.name = call.operator
        self.gates = GATES[self.name]
        self.sizes = self._checked()
        self.blocks = -(-self.sizes.hidden // low.target.lanes)

    def _computed(self, x: Tensor) -> Tensor:
        return cast(self.low, x, self.kind)

    def _state(self, x: Tensor) -> Tensor:
        """Return a state as (direction, row, hidden)."""
        x = self.low.dense(self._computed(x))
        return self.low.permute(x, (1, 0, 2)) if self.batch_first and x.rank == 3 else x

    def _checked(self) -> _Sizes:
        """Return the sizes, once every input is known to have them."""
        direction = _text(self.call.get("direction", "forward"))
        if direction not in _DIRECTIONS:
            raise ValueError(f"there is no direction {direction!r}")
        if self.x.rank != 3 or self.w.rank != 3 or self.r.rank != 3:
            raise ValueError("X, W and R have three dimensions")
        steps, rows, inputs = self.x.shape
        if self.batch_first:
            steps, rows = rows, steps
        hidden = int(self.call.get("hidden_size", self.r.shape[2]))
        directions = _DIRECTIONS[direction][0]
        states = (directions, rows, hidden)
        wanted = [
            ("W", self.w, (directions, self.gates * hidden, inputs)),
            ("R", self.r, (directions, self.gates * hidden, hidden)),
            ("B", self.b, (directions, 2 * self.gates * hidden)),
            ("P", self.p, (directions, 3 * hidden)),
            ("sequence_lens", self.lengths, (rows,)),
            ("initial_h", self.h_0, states),
            ("initial_c", self.c_0, states),
        ]
        for name, tensor, shape in wanted:
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}, not {list(shape)}")
        if steps >= 1 << 31:
            raise ValueError(f"a sequence of {steps} steps is too long")
        return _Sizes(steps, rows, inputs, hidden, directions)

    # Weights -----------------------------------------------------------------------------------------

    def _packed(self, x: Tensor, count: int, inner: int, inner_first: bool = False) -> Tensor:
        """Return (direction, count · hidden, inner) as [direction][block][inner][count][lane].

        Args:
            x: The weights.
            count: How many weights of a unit lie in groups of `hidden`.
            inner: The last dimension; a bias has one of 1.
            inner_first: Whether the result is [inner][direction][block][count][lane].
        """
        low, lanes, hidden = self.low, self.low.target.lanes, self.sizes.hidden
        directions, blocks = self.sizes.directions, self.blocks
        order = (4, 0, 2, 1, 3) if inner_first else (0, 2, 4, 1, 3)

        def pack(value: np.ndarray) -> np.ndarray:
            parts = value.reshape(directions, count, hidden, inner)
            parts = np.pad(parts, [(0, 0), (0, 0), (0, blocks * lanes - hidden), (0, 0)])
            split: np.ndarray = parts.reshape(directions, count, blocks, lanes, inner)
            return np.transpose(split, order)

        if x.value is not None:
            return low.derived(x, ("recurrent", count, inner, lanes, inner_first), pack)
        source = low.reshape(x, (directions, count, hidden, inner))
        sizes = (directions, count, blocks, lanes, inner)
        packed = low.permute(low.empty(x.kind, [sizes[axis] for axis in order]), np.argsort(order).tolist())
        whole = hidden // lanes
        for first, number, width in ((0, whole, lanes), (whole, 1, hidden - whole * lanes)):
            if number * width:
                a, b, c, d = source.strides
                shape = (directions, count, number, width, inner)
                seen = source.view(shape, (a, b, lanes * c, c, d), source.offset + first * lanes * c)
                low.copy(seen, packed.view(shape, packed.strides, first * packed.strides[2]))
        return low.permute(packed, order)

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the bias of the input product, and of the hidden product where it is apart."""
        shape = (self.sizes.directions, self.gates * self.sizes.hidden)
        if self.b is None:
            return None, self._packed(self._zeros(shape), self.gates, 1) if self._resets_after else None
        low, b = self.low, self.low.need(self.b)
        if b.value is not None:
            if not self._resets_after:
                return self._packed(low.derived(b, "sum of halves", _sum_of_halves), self.gates, 1), None
            w, r = (low.derived(b, ("half", half), partial(_half, half)) for half in range(2))
        else:
            w, r = (b.view(shape, b.strides, b.offset + half * shape[1] * b.strides[1]) for half in range(2))
        w, r = self._packed(w, self.gates, 1), self._packed(r, self.gates, 1)
        return (w, r) if self._resets_after else (low.apply("Add", w, r), None)

    @property
    def _resets_after(self) -> bool:
        return self.name == "GRU" and bool(self.call.get("linear_before_reset", 0))

    def _zeros(self, shape: Sequence[int]) -> Tensor:
        low, dtype = self.low, dtype_of(self.kind)
        return low.shared(("zeros", tuple(shape), dtype.name), lambda: np.zeros(shape, dtype))

    # Launches ----------------------------------------------------------------------------------------

    def lower(self) -> list[Tensor]:
        """Launch the layer and return Y, Y_h and Y_c."""
        low, sizes = self.low, self.sizes
        cell = self._cell()
        bias, extra = self._biases()
        product, x_strides = self._input_product(bias)
        weights = self._packed(self.r, self.gates, sizes.hidden)
        if self.p is not None:
            extra = self._packed(self.p, 3, 1)
        states = (sizes.directions, sizes.rows, sizes.hidden)
        h_0 = self.h_0 or self._no_state(states)
        c_0 = self.c_0 or self._no_state(states)
        y, y_strides = self._output((sizes.steps, *states), (2, 0, 1, 3))
        last, last_strides = self._output(states, (1, 0, 2))
        last_c, _ = self._output(states, (1, 0, 2))
        group = min(max(-(-sizes.directions * sizes.rows // low.threads), 1), sizes.rows or 1, _MAX_GROUP)
        tile = self._tile(group)
        width = self.blocks * low.target.lanes
        low.launch(
            Kernel.of("recurrent", cell=cell, tile=tile),
            outputs=[y, last, last_c],
            inputs=[product, weights, extra or weights, self._lengths(), h_0, c_0],
            sizes=[
                *(sizes.steps, sizes.rows, sizes.hidden, self.backward, group),
                *(*x_strides, *y_strides[:3], *last_strides[:2], *h_0.strides[:2], *c_0.strides[:2]),
            ],
            extent=sizes.directions * -(-sizes.rows // group),
            flops=2 * sizes.steps * sizes.rows * weights.size,
            bytes=(sizes.steps * weights.size + y.size + 2 * last.size) * self.kind.size_bytes,
            scratch_bytes=4 * group * width * self.kind.size_bytes,
        )
        outputs = [y, last, last_c]
        if self.kind is self.given:
            return outputs
        return [low.apply("Cast", each, to=self.given.name) for each in outputs]

    def _input_product(self, bias: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
        """Return X · W with its bias, and its strides of steps, directions and rows."""
        low, sizes = self.low, self.sizes
        weights = self._packed(self.w, self.gates, sizes.inputs, inner_first=True)
        width = weights.size // sizes.inputs if sizes.inputs else 0
        rows = low.reshape(self.x, (sizes.steps * sizes.rows, sizes.inputs))
        product = matrix_product(low, rows, low.reshape(weights, (sizes.inputs, width)))
        if bias is not None:
            product = low.apply("Add", product, low.reshape(bias, (width,)))
        steps, row = (width, sizes.steps * width) if self.batch_first else (sizes.rows * width, width)
        return low.dense(product), (steps, width // sizes.directions, row)

    def _output(self, shape: Sequence[int], order: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
        """Return an output, and the strides of its dimensions as they are without `layout`."""
        if not self.batch_first:
            out = self.low.empty(self.kind, shape)
            return out, out.strides
        out = self.low.empty(self.kind, [shape[axis] for axis in order])
        return out, [out.strides[axis] for axis in np.argsort(order)]

    def _no_state(self, states: Sequence[int]) -> Tensor:
        return self._zeros((states[2],)).view(states, (0, 0, 1))

    def _lengths(self) -> Tensor:
        low, sizes = self.low, self.sizes
        if self.lengths is None:
            key = ("lengths", sizes.steps, sizes.rows)
            return low.shared(key, lambda: np.full(sizes.rows, sizes.steps, np.int32))
        return low.dense(self.lengths)

    def _tile(self, rows: int) -> int:
        """Return how many of a unit's rows share the loads of weights: as many as registers hold."""
        most = (self.low.target.registers - 5) // max(self.gates, 3)
        wanted = -(-rows // -(-rows // most))
        return next(tile for tile in _TILES if tile >= wanted or tile == most)

    # Attributes --------------------------------------------------------------------------------------

    @property
    def backward(self) -> int:
        """The first direction that runs from the last step to the first."""
        return _DIRECTIONS[_text(self.call.get("direction", "forward"))][1]

    def _cell(self) -> Cell:
        clip = float(self.call.get("clip", 0.0))
        if clip < 0:
            raise ValueError(f"a clip of {clip}")
        return Cell(
            self.name,
            self.kind,
            self._activations(),
            clip,
            self.p is not None,
            bool(self.call.get("input_forget", 0)),
            self._resets_after,
        )

    def _activations(self) -> tuple[Activation, ...]:
        """Return the functions of the gates, which both directions must share."""
        defaults = _DEFAULTS[self.name]
        names = [_text(each) for each in self.call.get("activations") or defaults * self.sizes.directions]
        if len(names) != len(defaults) * self.sizes.directions:
            raise ValueError(f"{len(names)} activations for {self.sizes.directions} directions")
        alphas = [float(each) for each in self.call.get("activation_alpha") or ()]
        betas = [float(each) for each in self.call.get("activation_beta") or ()]
        found = [_activation(name.lower(), alphas, betas) for name in names]
        own = tuple(found[: len(defaults)])
        if tuple(found[-len(defaults) :]) != own:
            raise NotCompiled
        return own


def _activation(name: str, alphas: list[float], betas: list[float]) -> Activation:
    """Return the function of a name, with its parameters taken from the front of the lists."""
    if name in _PLAIN:
        return Activation(_PLAIN[name])
    if name in _WITH_ALPHA:
        function, default = _WITH_ALPHA[name]
        return Activation(function, (("alpha", alphas.pop(0) if alphas else default),))
    if name not in _WITH_BOTH:
        raise ValueError(f"there is no activation {name!r}")
    alpha, beta = (
        values.pop(0) if values else default
        for values, default in zip((alphas, betas), _WITH_BOTH[name], strict=True)
    )
    if name == "affine":
        return Activation("Identity", slope=alpha, shift=beta)
    if name == "scaledtanh":
        return Activation("Tanh", slope=beta, scale=alpha)
    return Activation("HardSigmoid", (("alpha", alpha), ("beta", beta)))


def _half(index: int, b: np.ndarray) -> np.ndarray:
    return np.split(b, 2, 1)[index]


def _sum_of_halves(b: np.ndarray) -> np.ndarray:
    return np.sum(np.split(b, 2, 1), 0, b.dtype)  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
