"""Tables: dialects, hostile files, cells to numbers, and classification and regression of rows."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import educe
from educe.errors import CardError, EduceError, InputError, LimitError
from educe.limits import DEFAULT_LIMITS
from educe.media.columns import Column
from educe.media.table import read_table
from educe.model import CardOrigin, MapType, Model, SequenceType, Signature, TensorType
from educe.model.card import Card, ScoresOutput, TableInput
from educe.tasks import task_for

ZOO = Path(__file__).parent.parent / "zoo" / "breast_cancer"
PATIENTS = ZOO / "inputs" / "patients.csv"


def rows_of(content, columns=("a", "b"), limits=DEFAULT_LIMITS):
    source = content.encode() if isinstance(content, str) else content
    return list(read_table(source, columns, limits))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_dialects(delimiter, end, mark):
    lines = ["x", "b", "a"], ["1", "2", "3"], ["", "4,5;6|7\t8", "9"]
    text = mark + "".join(delimiter.join(f'"{cell}"' for cell in line) + end for line in lines)
    assert rows_of(text) == [(2, ["3", "2"]), (3, ["9", "4,5;6|7\t8"])]


def test_quoted_cells_hold_quotes_and_line_ends():
    text = 'a,b\n"say ""x""","one\r\ntwo\n"\n\n3,4\n'
    assert rows_of(text) == [(2, ['say "x"', "one\r\ntwo\n"]), (6, ["3", "4"])]


def test_the_delimiter_is_the_one_that_finds_the_columns():
    assert rows_of('"a,b,c";b;a\n1;2;3\n') == [(2, ["3", "2"])]
    assert rows_of("a\n1\n", ["a"]) == [(2, ["1"])]
    assert rows_of("a;b,c\n1;2\n", ["b,c"]) == [(2, ["2"])]


def test_sources(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with path.open(encoding="utf-8") as stream:
        assert list(read_table(stream, ["b"], DEFAULT_LIMITS)) == [(2, ["2"])]
        assert not stream.closed
    with path.open("rb") as binary:
        assert list(read_table(binary, ["b"], DEFAULT_LIMITS)) == [(2, ["2"])]
    assert list(read_table(path, ["b"], DEFAULT_LIMITS)) == [(2, ["2"])]
    assert list(read_table(io.StringIO("a\tb\n1\t2"), ["b"], DEFAULT_LIMITS)) == [(2, ["2"])]


cells = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)


@given(
    st.lists(st.tuples(cells, cells), max_size=5), st.sampled_from(",\t;|"), st.sampled_from(["\n", "\r\n"])
)
def test_what_csv_writes_is_read_back(rows, delimiter, end):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("first", "second"), *rows])
    found = rows_of(text.getvalue(), ("second", "first"))
    assert [tuple(reversed(row)) for _, row in found] == rows


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "no header line"),
        ("\n\n", "no header line"),
        ("a,c\n1,2\n", r"no column 'b'; it has 'a', 'c'"),
        ("a,B\n1,2\n", "no column 'b'"),
        ("a,b,a\n1,2,3\n", "line 1: two columns are named 'a'"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 cells as in the header, found 1"),
        ("a,b\n1,2\n3,4,5\n", "line 3: expected 2 cells as in the header, found 3"),
        ('a,b\n1,"2\n3,4\n', "line 2: the quoted cell that begins here never ends"),
        ('a,b\n1,"2"x\n', "line 2: is no CSV"),
        ("a,b\r1,2\r", "no CSV"),
        (b"a,b\n1,\xe9\n", "byte 6: expected UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "byte 0: expected UTF-8"),
    ],
)
def test_hostile_tables(content, problem):
    with pytest.raises(InputError, match=problem):
        rows_of(content)


def test_errors_name_the_file_and_a_near_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("age,weigth\n1,2\n")
    with pytest.raises(InputError, match=r"t\.csv: .*no column 'weight'.*did you mean 'weigth'"):
        list(read_table(path, ["age", "weight"], DEFAULT_LIMITS))
    with pytest.raises(InputError, match="not a regular file"):
        list(read_table(tmp_path, ["age"], DEFAULT_LIMITS))
    latin = io.TextIOWrapper(io.BytesIO(b"a\n\xe9\n"), encoding="utf-8")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_table(latin, ["a"], DEFAULT_LIMITS))


def test_limits(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 100)
    with pytest.raises(LimitError, match=r"t\.csv: .*table_bytes"):
        list(read_table(path, ["a"], DEFAULT_LIMITS.raised(table_bytes=100)))
    with pytest.raises(LimitError, match="table_bytes"):
        rows_of(path.read_bytes(), limits=DEFAULT_LIMITS.raised(table_bytes=100))
    with pytest.raises(LimitError, match="cell_bytes"):
        rows_of("a,b\n1," + "x" * 101, limits=DEFAULT_LIMITS.raised(cell_bytes=100))
    with pytest.raises(LimitError, match="a cell is larger than 131,072 characters"):
        rows_of("a,b\n1," + "x" * 200_000)
    many_small_cells = "a,b\n1," + '"\n",' * 1000
    with pytest.raises(LimitError, match="row_bytes"):
        rows_of(many_small_cells, limits=DEFAULT_LIMITS.raised(row_bytes=500))


def test_an_endless_line_is_not_read_whole():
    class Endless(io.StringIO):
        asked = 0

        def readline(self, size=-1):
            assert size > 0
            self.asked += size
            return "x" * size

    stream = Endless()
    with pytest.raises(LimitError, match="row_bytes"):
        list(read_table(stream, ["a"], DEFAULT_LIMITS))
    assert stream.asked < 2 * DEFAULT_LIMITS.row_bytes


def test_a_wide_header_is_read():
    names = [f"column {k}" for k in range(20_000)]
    content = ",".join(names) + "\n" + ",".join(map(str, range(20_000)))
    assert rows_of(content, ["column 19999", "column 0"]) == [(2, ["19999", "0"])]


def place_of(position):
    return f"line {position + 2}"


@pytest.mark.parametrize(
    ("cells", "dtype", "expected"),
    [
        (["1", " 2.5 ", "-3e2"], "f4", [1, 2.5, -300]),
        ([1, 2.5, np.float32(3)], "f8", [1, 2.5, 3]),
        (["inf", "-inf"], "f4", [np.inf, -np.inf]),
        (["1", "-2", 3, 4.0, True], "i8", [1, -2, 3, 4, 1]),
        (["9007199254740993"], "i8", [9007199254740993]),
        (["255"], "u1", [255]),
        (["true", "False", 1, "0", True], "?", [True, False, True, False, True]),
        (["x", 7, ""], "O", ["x", "7", ""]),
    ],
)
def test_cells_to_arrays(cells, dtype, expected):
    found = Column("c", missing="nan").array(cells, np.dtype(dtype), place_of)
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("cell", "dtype", "problem"),
    [
        ("12a", "f4", "'12a' is no number"),
        ("1_000", "f4", "'1_000' is no number"),
        ("1,5", "f8", "'1,5' is no number"),
        ([1], "f4", r"\[1\] is no number"),
        ("", "f4", "the cell is empty"),
        ("  ", "f4", "the cell is empty"),
        ("nan", "f4", "the cell is empty"),
        (None, "f4", "the cell is empty"),
        (float("nan"), "f4", "the cell is empty"),
        ("1e300", "f4", "'1e300' does not fit float32"),
        ("2.5", "i4", "'2.5' is no whole number"),
        (2.5, "i4", "2.5 is no whole number"),
        ("1_0", "i4", "'1_0' is no whole number"),
        ("", "i4", "the cell is empty"),
        ("3000000000", "i4", "'3000000000' does not fit int32"),
        ("-1", "u1", "'-1' does not fit uint8"),
        ("9" * 5000, "i8", "is no whole number|does not fit"),
        ("maybe", "?", "'maybe' is neither true nor false"),
        ("", "O", "the cell is empty"),
        ("x" * 1000, "f4", "…"),
    ],
)
def test_cells_that_cannot_be_used(cell, dtype, problem):
    cells = ["x" if dtype == "O" else "1", cell]
    with pytest.raises(InputError, match=f"line 3, column 'c': .*({problem})") as caught:
        Column("c").array(cells, np.dtype(dtype), place_of)
    assert len(str(caught.value)) < 300


def test_missing_values_become_nan_where_the_card_says_so():
    found = Column("c", missing="nan").array(["1", "", None, " ", "NaN"], np.dtype("f4"), place_of)
    assert np.isnan(found).tolist() == [False, True, True, True, True]
    with pytest.raises(InputError, match="empty"):
        Column("c", missing="nan").array(["1", ""], np.dtype("i8"), place_of)


def test_words_become_their_codes():
    column = Column("colour", words=("red", "green", "7"), missing="nan")
    assert column.array(["green", "red", 7], np.dtype("i8"), place_of).tolist() == [1, 0, 2]
    floats = column.array(["7", ""], np.dtype("f4"), place_of)
    assert floats[0] == 2
    assert np.isnan(floats[1])
    with pytest.raises(
        InputError, match=r"line 3.*'colour'.*'gren' is none of the words 'red', 'green'.*'green'"
    ):
        column.array(["red", "gren"], np.dtype("i8"), place_of)
    with pytest.raises(InputError, match="empty"):
        Column("colour", words=("red",)).array([""], np.dtype("f4"), place_of)


@given(
    st.lists(st.one_of(st.text(max_size=6), st.none(), st.floats(), st.integers(), st.booleans()), max_size=4)
)
def test_any_cells_give_an_array_or_a_typed_error(cells):
    for dtype in ("f4", "f8", "i4", "?", "O"):
        for words in (None, ("a", "b")):
            try:
                found = Column("c", words, "nan").array(cells, np.dtype(dtype), place_of)
            except InputError:
                continue
            assert found.shape == (len(cells),)


def test_patients_get_the_probabilities_of_the_original():
    predictor = educe.predictor(ZOO / "model.onnx")
    answers = list(predictor.stream(PATIENTS))
    expected = json.loads((ZOO / "expected.json").read_text())["benign_probability"]
    found = [{p.label: p.score for p in answer.predictions}["benign"] for answer in answers]
    np.testing.assert_allclose(found, expected, atol=2e-7)
    assert [answer.row for answer in answers] == list(range(57))
    assert all(answer.top()[0].score >= 0.5 for answer in answers)


def test_files_dicts_and_arrays_answer_the_same():
    predictor = educe.predictor(ZOO / "model.onnx")
    with PATIENTS.open(encoding="utf-8", newline="") as file:
        records = list(itertools.islice(csv.DictReader(file), 5))
    columns = predictor.task.card.table.columns
    dicts = [{name: float(record[name]) for name in reversed(columns)} | {"extra": 1} for record in records]
    array = np.array([[row[name] for name in columns] for row in dicts])
    ways = [records, dicts, array, iter(dicts)]
    expected = [answer.predictions for answer in predictor.stream(PATIENTS)][:5]
    for way in ways:
        assert [answer.predictions for answer in predictor.stream(way)] == expected
    assert predictor(dicts[2]).predictions == expected[2]
    assert [answer.predictions for answer in predictor.stream(str(PATIENTS))][:5] == expected


def test_a_bad_row_costs_no_other_its_answer():
    lines = PATIENTS.read_text().splitlines()
    lines[3] = "oops" + lines[3][lines[3].index(",") :]
    predictor = educe.predictor(ZOO / "model.onnx")
    results = list(predictor.results(["\n".join(lines).encode()]))
    assert [k for k, result in enumerate(results) if result.error] == [2]
    assert str(results[2].error).startswith("line 4, column 'mean radius': 'oops' is no number")
    assert len(results) == 57


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"mean radius": 1.0}, "no column 'mean texture'"),
        (np.zeros((2, 3)), r"expected an array \[rows, 30\], found \[2, 3\]"),
        (np.zeros(30), r"found \[30\]"),
        ([[1, 2]], "found list"),
        (5, "expected a table, found int"),
    ],
)
def test_sources_that_are_no_table(source, problem):
    predictor = educe.predictor(ZOO / "model.onnx")
    with pytest.raises(InputError, match=problem):
        list(predictor.stream(source))


def tabular_task(inputs, outputs, table, task="tabular-classification", labels=(), scores=None):
    """A task whose model has a signature only: its graph is never asked for."""
    signature = Signature(inputs, outputs)
    card = Card(task=task, labels=labels, table=table, scores=scores or ScoresOutput())
    return task_for(Model(None, signature, "m", None, "0" * 64, 0, {}, card, CardOrigin("test")))


MATRIX = {"x": TensorType("f32", ("N", 2))}
TABLE = TableInput(columns=("a", "b"))


def test_each_column_may_have_its_own_input():
    inputs = {
        "b": TensorType("str", ("N", 1)),
        "a": TensorType("i64", ("N", 1)),
        "c": TensorType("f32", ("N",)),
        "d": TensorType("f32", ("N", 1)),
    }
    table = TableInput(columns=("a", "b", "c", "d"), categories={"d": ("low", "high")})
    task = tabular_task(inputs, {"y": TensorType("f32", ("N", 2))}, table)
    feeds = task.preprocess(list(task.open(b"a,b,c,d\n1,x,2.5,high\n2,y,3,low\n")))
    assert {name: (array.dtype.kind, array.shape) for name, array in feeds.items()} == {
        "a": ("i", (2, 1)),
        "b": ("O", (2, 1)),
        "c": ("f", (2,)),
        "d": ("f", (2, 1)),
    }
    assert feeds["b"].tolist() == [["x"], ["y"]]
    assert feeds["d"].tolist() == [[1.0], [0.0]]


def test_cards_that_do_not_fit():
    outputs = {"y": TensorType("f32", ("N", 2))}
    with pytest.raises(CardError, match="2 columns, the input 'x' takes 3"):
        tabular_task({"x": TensorType("f32", ("N", 3))}, outputs, TABLE)
    with pytest.raises(CardError, match="'c' is only one of them"):
        tabular_task(
            {"a": TensorType("f32", ("N", 1)), "c": TensorType("f32", ("N", 1))}, outputs, TableInput(("a",))
        )
    with pytest.raises(CardError, match=r"\[table\]"):
        tabular_task(MATRIX, outputs, None)
    task = tabular_task(MATRIX, outputs, TABLE, scores=ScoresOutput(output="nope"))
    with pytest.raises(CardError, match="'nope'"):
        found_by(task, {"y": np.zeros((2, 2))})


def found_by(task, outputs, rows=2):
    items = list(task.open([{"a": 1, "b": 2}] * rows))
    return [finding.predictions for finding in task.postprocess(outputs, items)]


def test_scikit_learn_outputs_labels_first():
    outputs = {"label": TensorType("i64", ("N",)), "probabilities": TensorType("f32", ("N", 3))}
    task = tabular_task(MATRIX, outputs, TABLE, labels=("x", "y", "z"))
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32)
    found = found_by(task, {"label": np.array([1, 0]), "probabilities": scores})
    assert [[p.label for p in row] for row in found] == [["y", "z", "x"], ["x", "z", "y"]]
    assert found[0][0].score == pytest.approx(0.7)


@pytest.mark.parametrize("as_array", [False, True])
def test_scikit_learn_maps(as_array):
    outputs = {
        "label": TensorType("str", ("N",)),
        "maps": SequenceType(MapType("str", TensorType("f32", ()))),
    }
    task = tabular_task(MATRIX, outputs, TABLE)
    maps = [{"no": 0.25, "yes": 0.75}, {"no": 0.5, "yes": 0.5}]
    given = np.array(maps, object) if as_array else maps
    found = found_by(task, {"label": np.array(["yes", "no"], object), "maps": given})
    assert [[(p.label, p.index, p.score) for p in row] for row in found] == [
        [("yes", 1, 0.75), ("no", 0, 0.25)],
        [("no", 0, 0.5), ("yes", 1, 0.5)],
    ]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_probability_is_that_of_the_second_class(shape):
    task = tabular_task(MATRIX, {"p": TensorType("f32", ("N", 1))}, TABLE, labels=("no", "yes"))
    found = found_by(task, {"p": np.array([0.9, 0.2], np.float32).reshape(shape)})
    assert [[p.label for p in row] for row in found] == [["yes", "no"], ["no", "yes"]]
    assert found[1][0].score == pytest.approx(0.8)


def test_regression_gives_labelled_numbers():
    outputs = {"price": TensorType("f32", ("N", 1))}
    task = tabular_task(MATRIX, outputs, TABLE, "tabular-regression")
    found = found_by(task, {"price": np.array([[1.5], [2.5]], np.float32)})
    assert [[(p.label, p.value) for p in row] for row in found] == [[("price", 1.5)], [("price", 2.5)]]
    task = tabular_task(MATRIX, outputs, TABLE, "tabular-regression", labels=("low", "high"))
    found = found_by(task, {"price": np.array([[1, 2]], np.float64)}, rows=1)
    assert [(p.label, p.value) for p in found[0]] == [("low", 1.0), ("high", 2.0)]
    with pytest.raises(CardError, match="3 rows for 2"):
        found_by(task, {"price": np.zeros((3, 1))})


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_typed_error(content):
    task = tabular_task(MATRIX, {"y": TensorType("f32", ("N", 2))}, TABLE)
    with contextlib.suppress(EduceError):
        for item in task.open(b"a,b\n" + content):
            assert task.preprocess([item])["x"].shape == (1, 2)


def test_an_answer_of_a_row_is_plain():
    answer = next(iter(educe.predictor(ZOO / "model.onnx", top=1).stream(PATIENTS)))
    assert json.loads(msgspec.json.encode(answer.to_dict()))["row"] == 0
