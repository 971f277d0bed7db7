"""File types: the original's answers, its rules for tiny files, and files too large to read."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

import educe
from educe.errors import CardError, InputError
from educe.tasks import TaskOptions, task_for

MAGIKA = Path(__file__).parent.parent / "zoo" / "magika"
CASES = json.loads((MAGIKA / "reference_cases.json").read_text())


@pytest.fixture(scope="module")
def model():
    return educe.load(MAGIKA / "model.onnx")


@pytest.fixture(scope="module")
def predictor(model):
    return educe.predictor(model)


def changed(model, **changes):
    rules = msgspec.structs.replace(model.card.file, **changes)
    return model.with_card(msgspec.structs.replace(model.card, file=rules), model.card_origin)


# The model takes a variance as a difference of large sums, and so loses digits by the order in which an
# engine adds: the same arithmetic in f64 gives scores up to 4e-3 from the recorded ones, which are those of
# ONNX Runtime, of one file at a time.
@pytest.mark.parametrize(("engine", "tolerance"), [("onnxruntime", 1e-4), ("native", 6e-3)])
def test_reference_cases(model, engine, tolerance):
    contents = [base64.b64decode(case["content_base64"]) for case in CASES]
    alone = [answer.top()[0] for answer in educe.predictor(model, engine=engine, batch=1).map(contents)]
    together = [answer.top()[0] for answer in educe.predictor(model, engine=engine).map(contents)]
    assert len(alone) == len(CASES) > 20
    for one, many, case in zip(alone, together, CASES, strict=True):
        assert one.label == many.label == case["output"]
        assert one.score == pytest.approx(case["score"], abs=tolerance)
        assert many.score == pytest.approx(case["score"], abs=1e-2)
    if engine == "native":
        assert [one.score for one in alone] == [many.score for many in together]


def test_without_thresholds_the_best_class_is_the_answer(model):
    cases = [case for case in CASES if case["dl"] != "undefined"]
    predictor = educe.predictor(changed(model, thresholds={}, score_threshold=0.0))
    answers = predictor.map(base64.b64decode(case["content_base64"]) for case in cases)
    for answer, case in zip(answers, cases, strict=True):
        assert answer.top()[0].label == model.card.file.rename.get(case["dl"], case["dl"])
        assert answer.top()[0].index == model.card.labels.index(case["dl"])


def test_files_give_the_expected_types(predictor):
    expected = json.loads((MAGIKA / "expected.json").read_text())
    paths = [MAGIKA / "inputs" / name for name in expected]
    for answer, case in zip(predictor.map(paths), expected.values(), strict=True):
        assert answer.top()[0].label == case["label"]
        assert answer.top()[0].score == pytest.approx(case["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"", "empty"),
        (b"hello", "txt"),
        ("grüß".encode(), "txt"),
        (b"\xff\xfe", "unknown"),
        (b" " * 5000, "txt"),
        (b"\n" * 3000 + b"1234567", "txt"),
        (b"\n" * 3000 + b"\xff", "unknown"),
    ],
)
def test_tiny_files_are_settled_by_rule(predictor, content, label):
    (found,) = predictor(content).predictions
    assert (found.label, found.score, found.index) == (label, 1.0, None)


def test_rules_do_not_disturb_their_neighbours(predictor):
    source = (MAGIKA / "inputs" / "orbit.py").read_bytes()
    labels = [answer.top()[0].label for answer in predictor.map([b"", source, b"x", source])]
    assert labels == ["empty", "python", "txt", "python"]


def test_a_path_and_its_bytes_answer_the_same_and_are_read_only_at_the_ends(predictor, tmp_path):
    path = tmp_path / "huge"
    head = (MAGIKA / "inputs" / "orbit.py").read_bytes()
    with path.open("wb") as file:
        file.write(head)
        file.truncate(10 * 2**30)
    (item,) = predictor.task.open(path)
    assert (len(item.content.head), len(item.content.tail)) == (4096, 4096)
    assert predictor(path).predictions
    small = MAGIKA / "inputs" / "page.html"
    assert predictor(small).predictions == predictor(small.read_bytes()).predictions


def test_head_and_tail_are_padded_inwards(model):
    task = task_for(model)
    row = task.preprocess(list(task.open(b"  ab\x00\x07 \n")))["bytes"][0]
    assert row.dtype == np.int32
    assert row[:6].tolist() == [97, 98, 0, 7, 32, 10]
    assert row[-6:].tolist() == [32, 32, 97, 98, 0, 7]
    assert set(row[6:-6]) == {256}


def test_next_classes_follow_the_answer(model):
    source = MAGIKA / "inputs" / "stations.json"
    found = educe.predictor(model, top=3)(source).predictions
    assert found[0].label == "json"
    assert len({prediction.label for prediction in found}) == 3
    assert found[0].score > found[1].score >= found[2].score
    assert len(educe.predictor(model, top=3, threshold=0.5)(source).predictions) == 1


def test_the_callers_threshold_replaces_the_cards(model):
    source = MAGIKA / "inputs" / "page.html"
    assert educe.predictor(model, threshold=0.99)(source).top()[0].label == "txt"
    assert educe.predictor(model, threshold=0.1)(source).top()[0].label == "html"


def test_hostile_sources(predictor, model, tmp_path):
    with pytest.raises(InputError, match="not a regular file"):
        predictor(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        predictor(tmp_path / "pipe")
    with pytest.raises(InputError, match="cannot be opened"):
        predictor(tmp_path / "none")
    with pytest.raises(InputError, match="found int"):
        predictor(3)
    with pytest.raises(CardError, match=r"\[file\]"):
        task_for(
            changed(model).with_card(educe.Card(task="file-type"), model.card_origin), None, TaskOptions()
        )
