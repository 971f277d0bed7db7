"""LSTM, GRU and RNN against their definition in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.errors import EduceError
from tests.compiler.models import FLOAT, model, native

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "Softsign": lambda x: x / (1 + abs(x)),
    "Affine": lambda x: 0.7 * x + 0.1,
    "ScaledTanh": lambda x: 0.7 * np.tanh(0.1 * x),
    "LeakyRelu": lambda x: np.where(x < 0, 0.7 * x, x),
}


class Case:
    """A layer with its random weights."""

    def __init__(
        self, name: str, steps: int = 5, rows: int = 3, inputs: int = 7, hidden: int = 21, **attributes: Any
    ):
        rng = np.random.default_rng(3)
        self.name, self.hidden = name, hidden
        self.constant = attributes.pop("constant", True)
        self.peepholes = attributes.pop("peepholes", False)
        self.bias = attributes.pop("bias", True)
        self.dtype = attributes.pop("dtype", np.float32)
        lengths = attributes.pop("lengths", None)
        initial = attributes.pop("initial", True)
        self.attributes = attributes
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        first = (rows, steps) if attributes.get("layout") else (steps, rows)
        states = (rows, directions, hidden) if attributes.get("layout") else (directions, rows, hidden)
        gates = GATES[name]
        shapes = {
            "x": (*first, inputs),
            "w": (directions, gates * hidden, inputs),
            "r": (directions, gates * hidden, hidden),
            "b": (directions, 2 * gates * hidden) if self.bias else None,
            "lengths": None,
            "h": states if initial else None,
            "c": states if initial and name == "LSTM" else None,
            "p": (directions, 3 * hidden) if self.peepholes else None,
        }
        self.feeds = {
            key: (rng.normal(size=shape) * 0.5).astype(self.dtype) for key, shape in shapes.items() if shape
        }
        if lengths is not None:
            self.feeds["lengths"] = np.array(lengths, np.int32)
        self.order = [key if key in self.feeds else "" for key in shapes]
        while not self.order[-1]:
            self.order.pop()

    def executable(self) -> Any:
        weights = {key: value for key, value in self.feeds.items() if key in "wrbp" and self.constant}
        outputs = ["y", "y_h", "y_c"][: 3 if self.name == "LSTM" else 2]
        node = helper.make_node(self.name, self.order, outputs, hidden_size=self.hidden, **self.attributes)
        kinds = {np.float32: FLOAT, np.float64: TensorProto.DOUBLE, np.float16: TensorProto.FLOAT16}
        inputs = {
            key: (TensorProto.INT32 if key == "lengths" else kinds[self.dtype], [None] * value.ndim)
            for key, value in self.feeds.items()
            if key not in weights
        }
        made = model([node], inputs, outputs, weights, opset=14)
        self.inputs = {key: value for key, value in self.feeds.items() if key in inputs}
        return native(made)

    def expected(self) -> list[np.ndarray]:
        feeds = {key: value.astype(np.float64) for key, value in self.feeds.items()}
        batch_first = self.attributes.get("layout")
        x = feeds["x"].transpose(1, 0, 2) if batch_first else feeds["x"]
        steps, rows, _ = x.shape
        directions = len(feeds["w"])
        lengths = self.feeds.get("lengths", np.full(rows, steps))
        y = np.zeros((steps, directions, rows, self.hidden))
        last, last_c = np.zeros((2, directions, rows, self.hidden))
        for d in range(directions):
            for row in range(rows):
                h, c = (
                    (feeds[key].transpose(1, 0, 2) if batch_first else feeds[key])[d, row]
                    if key in feeds
                    else np.zeros(self.hidden)
                    for key in "hc"
                )
                times = np.arange(lengths[row])
                if d or self.attributes.get("direction") == "reverse":
                    times = times[::-1]
                for t in times:
                    h, c = self.step(d, x[t, row], h, c, feeds)
                    y[t, d, row] = h
                last[d, row], last_c[d, row] = h, c
        found = [y, last, last_c] if self.name == "LSTM" else [y, last]
        if batch_first:
            found = [found[0].transpose(2, 0, 1, 3), *(each.transpose(1, 0, 2) for each in found[1:])]
        return found

    def step(self, d: int, x: Any, h: Any, c: Any, feeds: dict[str, Any]) -> tuple[Any, Any]:
        hidden, gates = self.hidden, GATES[self.name]
        bias = feeds["b"][d] if self.bias else np.zeros(2 * gates * hidden)
        names = self.attributes.get("activations") or ["Sigmoid", "Tanh", "Tanh"]
        functions = [FUNCTIONS[name] for name in names]
        clip = self.attributes.get("clip", np.inf)

        def gate(index: int, value: Any) -> Any:
            return functions[index](np.clip(value, -clip, clip))

        wx = np.split(feeds["w"][d] @ x + bias[: gates * hidden], gates)
        r, rb = np.split(feeds["r"][d], gates), np.split(bias[gates * hidden :], gates)
        rh = [each @ h + b for each, b in zip(r, rb, strict=True)]
        if self.name == "RNN":
            return (functions if self.attributes.get("activations") else [np.tanh])[0](wx[0] + rh[0]), c
        if self.name == "GRU":
            z, reset = gate(0, wx[0] + rh[0]), gate(0, wx[1] + rh[1])
            inner = (
                reset * rh[2] if self.attributes.get("linear_before_reset") else r[2] @ (reset * h) + rb[2]
            )
            return (1 - z) * gate(1, wx[2] + inner) + z * h, c
        i, o, f, g = (a + b for a, b in zip(wx, rh, strict=True))
        p = np.split(feeds["p"][d], 3) if self.peepholes else np.zeros((3, hidden))
        i, f = gate(0, i + p[0] * c), gate(0, f + p[2] * c)
        if self.attributes.get("input_forget"):
            f = 1 - i
        c = f * c + i * gate(1, g)
        return gate(0, o + p[1] * c) * functions[2](c), c


CASES = {
    "lstm": Case("LSTM"),
    "lstm of one row": Case("LSTM", rows=1, steps=4, hidden=16),
    "lstm both ways": Case("LSTM", direction="bidirectional", peepholes=True, rows=4, lengths=[5, 0, 3, 1]),
    "lstm backwards": Case("LSTM", direction="reverse", lengths=[2, 5, 1], input_forget=1),
    "lstm batch first": Case("LSTM", layout=1, direction="bidirectional", lengths=[2, 5, 1]),
    "lstm of inputs": Case("LSTM", constant=False, peepholes=True, hidden=37, direction="bidirectional"),
    "lstm bare": Case("LSTM", bias=False, initial=False, hidden=5, clip=0.4),
    "lstm functions": Case("LSTM", activations=["HardSigmoid", "Softsign", "Relu"]),
    "lstm in f64": Case("LSTM", dtype=np.float64),
    "lstm in f16": Case("LSTM", dtype=np.float16),
    "lstm of no step": Case("LSTM", steps=0),
    "lstm of no row": Case("LSTM", rows=0),
    "gru": Case("GRU"),
    "gru reset after": Case("GRU", linear_before_reset=1, rows=5),
    "gru reset after, bare": Case("GRU", linear_before_reset=1, bias=False, constant=False),
    "gru both ways": Case("GRU", direction="bidirectional", lengths=[0, 5, 2], layout=1),
    "gru of inputs": Case("GRU", constant=False, linear_before_reset=1, hidden=16, clip=0.3),
    "rnn": Case("RNN", rows=9),
    "rnn affine": Case(
        "RNN", activations=["Affine"], activation_alpha=[0.7], activation_beta=[0.1], constant=False
    ),
    "rnn scaled": Case("RNN", activations=["ScaledTanh"], activation_alpha=[0.7], activation_beta=[0.1]),
    "rnn leaky": Case("RNN", activations=["LeakyRelu"], activation_alpha=[0.7]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layer(name: str) -> None:
    case = CASES[name]
    executable = case.executable()
    segments = executable.program(case.inputs)
    assert all(segment.step is None for segment in segments)
    found = list(executable.run(case.inputs).values())
    bound = 1e-2 if case.dtype is np.float16 else 2e-5
    for value, wanted in zip(found, case.expected(), strict=True):
        assert value.dtype == case.dtype
        np.testing.assert_allclose(value, wanted, rtol=bound, atol=bound)


def test_a_row_does_not_depend_on_others() -> None:
    whole = Case("GRU", rows=9)
    expected = whole.executable().run(whole.inputs)
    for rows in (1, 2, 7):
        part = dict(whole.inputs, x=whole.inputs["x"][:, :rows], h=whole.inputs["h"][:, :rows])
        found = whole.executable().run(part)
        np.testing.assert_array_equal(found["y"], expected["y"][:, :, :rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "sideways"}, "direction"),
        ({"activations": ["Sine", "Tanh", "Tanh"]}, "activation"),
        ({"clip": -1.0}, "clip"),
    ],
)
def test_wrong_attributes_are_refused(change: dict[str, Any], message: str) -> None:
    case = Case("LSTM", **change)
    with pytest.raises(EduceError, match=message):
        case.executable().run(case.inputs)


def test_wrong_shapes_are_refused() -> None:
    case = Case("GRU")
    executable = case.executable()
    with pytest.raises(EduceError, match="initial_h"):
        executable.run(dict(case.inputs, h=case.inputs["h"][:, :2]))


def test_lengths_beyond_the_steps_count_as_all_of_them() -> None:
    case = Case("LSTM", direction="bidirectional", lengths=[9, -2, 1 << 30])
    found = case.executable().run(case.inputs)
    case.feeds["lengths"] = np.array([5, 0, 5], np.int32)
    np.testing.assert_allclose(found["y"], case.expected()[0], rtol=2e-5, atol=2e-5)
