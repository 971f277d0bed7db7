"""The predictor: batches, order, errors of single items, and its contract for threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import educe
from educe.errors import CardError, EduceError, EngineError, InputError, OptionError
from educe.model.card import Card, ImageInput
from educe.tasks.answer import Prediction
from educe.tasks.base import Findings, Item, Task, TaskOptions
from educe.tasks.predictor import Named, Predictor
from tests.conformance.cases import model, node


def sums_model(batch: int | str = "N") -> educe.Model:
    """y[n] = (sum of x[n], a quarter of it) for u8 pictures of 2 by 2: f32[N, 2]."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f", "axes"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        onnx.numpy_helper.from_array(np.array([[1, 0.25]], np.float32), "w"),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [batch, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        weights,
    )
    card = Card(
        task="image-classification",
        image=ImageInput(size=(2, 2), color="gray", range=(0, 255)),
        labels=("sum", "quarter"),
    )
    return educe.load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), card=card
    )


def picture(value: int) -> np.ndarray:
    return np.full((2, 2), value, np.uint8)


class Spy:
    """Stands for an executable, and notes how many rows each run had."""

    def __init__(self, executable: educe.Executable) -> None:
        self.inner = executable
        self.rows: list[int] = []
        self.engine, self.signature, self.state = executable.engine, executable.signature, executable.state

    def run(self, feeds, state=None):
        self.rows.append(len(next(iter(feeds.values()))))
        return self.inner.run(feeds, state)

    def compile_seconds(self):
        return self.inner.compile_seconds()


def spied(model: educe.Model, batch: int | None = None) -> tuple[Predictor, Spy]:
    made = educe.predictor(model, threads=1)
    spy = Spy(made.executable)
    return Predictor(made.task, spy, batch), spy


def sums(answers) -> list[float]:
    return [answer.top()[0].score for answer in answers]


@pytest.mark.parametrize(
    ("batch", "rows"), [(None, [8, 8, 3]), (1, [1] * 19), (4, [4, 4, 4, 4, 3]), (50, [19])]
)
def test_batches_are_formed_and_order_is_kept(batch, rows):
    predictor, spy = spied(sums_model(), batch)
    assert sums(predictor.map(picture(value) for value in range(19))) == [4.0 * value for value in range(19)]
    assert spy.rows == rows


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_fixed_batch_is_filled_up(fixed):
    predictor, spy = spied(sums_model(fixed))
    assert predictor.batch == fixed
    for count in (0, 1, fixed, fixed + 1, 3 * fixed - 1):
        spy.rows.clear()
        values = list(range(1, count + 1))
        assert sums(predictor.map(picture(value) for value in values)) == [4.0 * value for value in values]
        assert spy.rows == [fixed] * -(-count // fixed)


def test_a_batch_that_the_model_does_not_take():
    model = sums_model(4)
    assert educe.predictor(model, batch=4).batch == 4
    with pytest.raises(OptionError, match="the model takes exactly 4 at once"):
        educe.predictor(model, batch=3)
    for batch in (0, -1, 2.5, "8"):
        with pytest.raises(OptionError, match="is not a positive integer"):
            educe.predictor(sums_model(), batch=batch)


def test_a_source_that_cannot_be_opened_fails_alone(tmp_path):
    predictor, _ = spied(sums_model(), 4)
    sources = [picture(1), tmp_path / "none.png", picture(2), b"nonsense", np.zeros((2, 2)), picture(3)]
    results = list(predictor.results(sources))
    assert [type(result.error) for result in results] == [
        type(None),
        InputError,
        type(None),
        InputError,
        InputError,
        type(None),
    ]
    assert sums(result.answer for result in results if result.answer) == [4.0, 8.0, 12.0]
    assert results[1].input == str(tmp_path / "none.png")
    assert [result.item is None for result in results] == [False, True, False, True, True, False]
    with pytest.raises(InputError):
        list(predictor.map(sources))


class Numbers(Task[float]):
    """A task of floats: 13 cannot be opened, negative ones fail in `preprocess`, 99 in the model."""

    name = "tensor"
    default_batch = 4

    def open(self, source) -> Iterator[Item[float]]:
        for row, number in enumerate(source if isinstance(source, list) else [source]):
            if number == 13:
                raise InputError("13 cannot be opened")
            yield Item(float(number), row=row)

    def preprocess(self, items):
        if any(item.content < 0 for item in items):
            raise InputError("a number is negative")
        return {"x": np.array([[item.content] * 3 for item in items], np.float32)}

    def postprocess(self, outputs, items):
        return [Findings([Prediction(value=float(row.sum()))]) for row in outputs["y"]]


class FailingSpy(Spy):
    def run(self, feeds, state=None):
        if (feeds["x"] == 99).any():
            raise EngineError("99 cannot be run")
        return super().run(feeds, state)


def numbers(tiny, spy=Spy) -> tuple[Predictor, Spy]:
    model = educe.load(tiny)
    executable = spy(educe.compile(model, threads=1))
    return Predictor(Numbers(model, TaskOptions()), executable), executable


def test_one_bad_item_among_many_costs_its_neighbours_nothing(tiny):
    predictor, _ = numbers(tiny, FailingSpy)
    sources = [1, 2, -5, 3, 4, 99, 5, 13, 6, [7, 8, 13, 9], 10]
    results = list(predictor.results(sources))
    seen = [result.error.cause if result.error else result.item.content for result in results]
    assert seen == [
        1,
        2,
        "a number is negative",
        3,
        4,
        "99 cannot be run",
        5,
        "13 cannot be opened",
        6,
        7,
        8,
        "13 cannot be opened",
        10,
    ]
    alone = [predictor(number).predictions for number in (1, 2, 3, 4, 5, 6, 10)]
    assert [
        r.answer.predictions for r in results if r.error is None and r.item.row == 0 and r.item.content != 7
    ] == alone
    assert [result.answer.row for result in results if result.answer][-3:] == [0, 1, 0]


def test_errors_of_other_kinds_are_not_hidden(tiny):
    predictor, _ = numbers(tiny)
    with pytest.raises(ValueError, match="could not convert"):
        predictor("seven")


def test_one_answer_about_one_item(tiny):
    predictor, _ = numbers(tiny)
    assert predictor(3).predictions == predictor([3]).predictions
    with pytest.raises(InputError, match=r"several items .*predictor\.stream"):
        predictor([3, 4])
    with pytest.raises(InputError, match="holds nothing to answer about"):
        predictor([])
    with pytest.raises(InputError, match="13 cannot be opened"):
        predictor(13)
    assert len(list(predictor.stream([3, 4, 5]))) == 3
    assert list(predictor.stream([])) == []
    assert list(predictor.map([])) == []


def test_answers_come_as_soon_as_their_batch_is_full(tiny):
    predictor, spy = numbers(tiny)
    drawn: list[int] = []

    def source():
        for number in range(100):
            drawn.append(number)
            yield number

    answers = predictor.map(source())
    next(answers)
    assert drawn == [0, 1, 2, 3]
    assert spy.rows == [4]
    answers.close()


def test_names(tiny, tmp_path, zoo):
    predictor, _ = numbers(tiny)
    assert predictor(Named("<standard input>", 3)).input == "<standard input>"
    assert predictor(3).input == "<int>"
    assert predictor(Named("a list", [3])).predictions == predictor(3).predictions
    with pytest.raises(InputError, match="a list: holds several"):
        predictor(Named("a list", [3, 4]))
    assert repr(predictor) == f"<Predictor tensor {predictor.task.model.name} on native>"
    made = educe.predictor(sums_model())
    photo = zoo / "images" / "cat.bmp"
    assert made(photo).input == str(photo)
    assert made(str(photo)).input == str(photo)
    assert made(photo.read_bytes()).input == "<bytes>"
    assert repr(made(photo)).startswith(f"<Answer {photo}: ")


def test_times(zoo):
    predictor = educe.predictor(zoo / "mobilenet_v2" / "model.onnx", threads=1, batch=3)
    start = time.perf_counter()
    answers = list(predictor.map([zoo / "images" / "cat.bmp"] * 5))
    passed = time.perf_counter() - start
    times = [answer.seconds for answer in answers]
    for one in times:
        assert min(one.preprocess, one.run, one.postprocess) > 0
    total = sum(one.preprocess + one.run + one.postprocess + one.compile for one in times)
    assert total <= passed


def test_compiling_is_no_part_of_a_run(zoo):
    predictor = educe.predictor(zoo / "breast_cancer" / "model.onnx", threads=1)
    rows = zoo / "breast_cancer" / "inputs" / "patients.csv"
    first, again = (next(predictor.stream(rows)).seconds for _ in range(2))
    assert first.compile > again.compile == 0
    assert "compile" not in msgspec.to_builtins(again)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: next(predictor.stream(rows)).seconds.compile).result() == 0


def test_compiling_between_segments_is_no_part_of_the_run_either():
    nodes = [node("NonZero", "x", "n"), node("Transpose", "n", "t"), node("GatherND", "x t")]
    executable = educe.compile(educe.load(model(nodes, {"x": "f32[3]"}, {"y": "f32[N]"})))
    spent = []
    for values in ([1, 2, 3], [1, 2, 3], [0, 1, 2]):
        before = executable.compile_seconds()
        executable.run({"x": np.array(values, np.float32)})
        spent.append(executable.compile_seconds() - before)
    assert spent[0] > 0
    assert spent[1] == 0
    assert spent[2] > 0


def test_what_an_answer_rests_on(zoo):
    predictor = educe.predictor(zoo / "mobilenet_v2" / "model.onnx", threads=1)
    answer = predictor(zoo / "images" / "cat.bmp")
    assert answer.model.sha256 == predictor.task.model.sha256
    assert (answer.engine, answer.task) == ("native", "image-classification")
    assert (answer.card.source, answer.card.guessed) == ("educe.toml", False)
    assert (answer.frame, answer.row, answer.time_seconds) == (None, None, None)


def test_one_predictor_in_many_threads(zoo):
    predictor = educe.predictor(zoo / "yolox_nano" / "model.onnx", threads=1)
    photos = sorted((zoo / "detection").glob("*.jpg"))
    expected = [predictor(photo).predictions for photo in photos]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda photo: predictor(photo).predictions, photos * 3))
    assert found == expected * 3


def counter_model() -> educe.Model:
    """A recurrent model: total f32[1] is state, total' = total + sum of x f32[1, 2], y = total'."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=0),
            helper.make_node("Add", ["total", "s"], ["next"]),
            helper.make_node("Identity", ["next"], ["y"]),
        ],
        "counter",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
        [onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return educe.load(proto, card=Card(task="tensor", state={"total": "next"}))


class Steps(Task[np.ndarray]):
    """Sequences f32[steps, 1, 2], of which the model sees one step after the other."""

    name = "tensor"
    stepwise = True

    def open(self, source):
        yield Item(source)

    def preprocess(self, items):
        (item,) = items
        return {"x": item.content}

    def postprocess(self, outputs, items):
        assert set(outputs) == {"y"}
        return [Findings(outputs={"y": outputs["y"]}) for _ in items]


def test_steps_carry_their_state_within_one_item_only(rng):
    model = counter_model()
    predictor = Predictor(Steps(model, TaskOptions()), educe.compile(model, threads=1))
    first, second = (rng.normal(size=(steps, 1, 2)).astype(np.float32) for steps in (5, 3))
    for answer, given in zip(predictor.map([first, second, first]), [first, second, first], strict=True):
        np.testing.assert_allclose(answer.outputs["y"][:, 0], given.sum((1, 2)).cumsum(), rtol=1e-5)


@pytest.mark.parametrize("shape", [[2], [1, 2, 3, 4], [1, 24, 1, 1], [6, 2], [0, 2]])
def test_an_output_without_the_pictures_axis_is_the_cards_fault(shape):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["constant"], ["y"])],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(np.ones(shape, np.float32), "constant")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    predictor = educe.predictor(
        educe.load(proto, card=Card(task="image-classification", image=ImageInput(size=(4, 4))))
    )
    results = list(predictor.results([np.zeros((4, 4, 3), np.uint8)] * 2))
    if shape == [1, 24, 1, 1]:  # of one picture, 24 classes; of two, run alone after they failed together
        assert [len(result.answer.predictions) for result in results] == [5, 5]
    else:
        assert [type(result.error) for result in results] == [CardError] * 2
        assert "[scores]" in results[0].error.remedy


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(value):
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "bad"], ["y"])],
        "bad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 1, 2])],
        [onnx.numpy_helper.from_array(np.array([1, value], np.float32), "bad")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    for activation in ("none", "softmax", "sigmoid"):
        card = Card(
            task="image-classification",
            image=ImageInput(size=(2, 1), color="gray"),
            scores=educe.model.card.ScoresOutput(activation=activation),
        )
        with pytest.raises(EngineError, match="scores that are not finite"):
            educe.predictor(educe.load(proto, card=card))(np.full((1, 2), 200, np.uint8))


def test_an_unknown_keyword_is_answered_with_the_nearest(zoo):
    model = zoo / "mnist" / "model.onnx"
    for wrong, right in {
        "treshold": "threshold",
        "thread": "threads",
        "tops": "top",
        "limit": "limits",
    }.items():
        with pytest.raises(OptionError, match=f"unknown keyword '{wrong}' .did you mean '{right}'"):
            educe.predictor(model, **{wrong: 1})
    for wrong in ({"top": 0}, {"threshold": 1.5}, {"task": "object-detektion"}, {"engine": "onnx"}):
        with pytest.raises(OptionError):
            educe.predictor(model, **wrong)


def test_top_and_threshold(zoo):
    photo = zoo / "images" / "kitten.jpg"
    model = educe.load(zoo / "mobilenet_v2" / "model.onnx")
    assert len(educe.predictor(model)(photo).predictions) == 5
    assert len(educe.predictor(model, top=2)(photo).predictions) == 2
    assert len(educe.predictor(model, top=5000)(photo).predictions) == 1001
    assert [one.score > 0.4 for one in educe.predictor(model, threshold=0.4)(photo).predictions] == [
        True,
        True,
    ]
    assert educe.predictor(model, threshold=1)(photo).predictions == []


def test_every_error_is_educes_own(tmp_path):
    predictor = educe.predictor(sums_model())
    for source in (None, 3, [], {}, object(), "", b"", tmp_path, np.zeros((0, 0), np.uint8), "a\0b"):
        with pytest.raises(EduceError):
            predictor(source)
