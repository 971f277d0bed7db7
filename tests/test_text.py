"""Texts: decoding, lines, tokenizers of every setting, and their classification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import educe
from educe.errors import (
    CardError,
    InputError,
    LimitError,
    ModelFileError,
    OptionError,
)
from educe.limits import DEFAULT_LIMITS
from educe.media.text import read_lines, read_text

SPAM = Path(__file__).parent.parent / "zoo" / "comment_spam"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "##s", "the"]


def test_read_text_leaves_out_the_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffgrüße\r\n日本".encode())
    assert read_text(path, DEFAULT_LIMITS) == "grüße\r\n日本"
    assert read_text(b"\xef\xbb\xbfx", DEFAULT_LIMITS) == "x"
    assert read_text(b"", DEFAULT_LIMITS) == ""


def test_other_encodings_are_refused_at_the_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt: byte 2: expected UTF-8 text, found the byte 0xef"):
        read_text(path, DEFAULT_LIMITS)
    with pytest.raises(InputError, match=r"byte 0: .*0xff"):
        read_text("x".encode("utf-16"), DEFAULT_LIMITS)
    with pytest.raises(InputError, match=r"byte 6: .*0xe9"):
        list(read_lines("abc\nxy\xe9z".encode("latin-1"), DEFAULT_LIMITS))


def test_lines_are_numbered_with_the_empty_ones_left_out(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\r\n\r\n  \ntwo\u2028still two\nthree".encode())
    assert list(read_lines(path, DEFAULT_LIMITS)) == [(0, "one"), (3, "two\u2028still two"), (4, "three")]


def test_text_limits(tmp_path):
    limits = DEFAULT_LIMITS.raised(text_bytes=10)
    path = tmp_path / "long.txt"
    path.write_bytes(b"short\n" * 5)
    with pytest.raises(LimitError, match="text_bytes is 10 bytes"):
        read_text(path, limits)
    assert len(list(read_lines(path, limits))) == 5
    with pytest.raises(LimitError, match="text_bytes"):
        list(read_lines(b"ok\n" + b"x" * 11, limits))
    with pytest.raises(InputError, match="cannot be opened"):
        read_text(tmp_path / "none.txt", limits)
    with pytest.raises(InputError, match="not a regular file"):
        list(read_lines(tmp_path, limits))


def test_comment_spam_gives_the_answers_of_the_original():
    predictor = educe.predictor(SPAM / "model.onnx")
    cases = json.loads((SPAM / "expected.json").read_text())["cases"]
    answers = list(predictor.stream(SPAM / "inputs" / "comments.txt"))
    assert len(answers) == len(cases)
    assert [answer.row for answer in answers] == list(range(len(cases)))
    for answer, case in zip(answers, cases, strict=True):
        scores = {prediction.label: prediction.score for prediction in answer.top(2)}
        assert answer.top(1)[0].label == case["label"]
        assert scores["spam"] == pytest.approx(case["spam_probability"], abs=2e-6)
        assert sum(scores.values()) == pytest.approx(1.0, abs=1e-6)


def test_a_str_is_the_text_itself_and_bytes_are_a_file():
    predictor = educe.predictor(SPAM / "model.onnx", top=1)
    line = (SPAM / "inputs" / "comments.txt").read_text(encoding="utf-8").splitlines()[0]
    assert predictor(line).predictions == predictor((line + "\n").encode()).predictions
    assert len(list(predictor.stream(f"{line}\n\n{line}\n".encode()))) == 2


def wordpiece(**settings) -> dict:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 1}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                token: {"id": token, "ids": [WORDS.index(token)], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: code for code, word in enumerate(WORDS)},
        },
        **settings,
    }


def masked_mean_model(length="tokens", ids_type=TensorProto.INT64, classes=2) -> bytes:
    """The mean of the embeddings that the mask leaves, plus that of the segment ids, to class scores."""
    generator = np.random.default_rng(3)
    weights = {
        "embedding": generator.normal(size=(len(WORDS), 4)).astype(np.float32),
        "segment": generator.normal(size=(2, 4)).astype(np.float32),
        "dense": generator.normal(size=(4, classes)).astype(np.float32),
        "last": np.array([-1], np.int64),
        "first": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["ids"], ["codes"], to=TensorProto.INT64),
        helper.make_node("Gather", ["embedding", "codes"], ["words"]),
        helper.make_node("Gather", ["segment", "types"], ["segments"]),
        helper.make_node("Add", ["words", "segments"], ["vectors"]),
        helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Mul", ["vectors", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "first"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Gemm", ["mean", "dense"], ["logits"]),
    ]
    types = {"ids": ids_type, "mask": TensorProto.INT64, "types": TensorProto.INT32}
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(name, kind, ["N", length]) for name, kind in types.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


CARD = """
task = "text-classification"
labels = ["negative", "positive"]
[text]
ids = "ids"
mask = "mask"
types = "types"
max_length = 6
"""


def saved(folder: Path, card=CARD, model=None, tokenizer=None) -> Path:
    (folder / "educe.toml").write_text(card)
    (folder / "tokenizer.json").write_text(json.dumps(wordpiece() if tokenizer is None else tokenizer))
    (folder / "model.onnx").write_bytes(model or masked_mean_model())
    return folder / "model.onnx"


def feeds_of(path: Path, *texts: str) -> dict[str, np.ndarray]:
    task = educe.predictor(path).task
    return task.preprocess([item for text in texts for item in task.open(text)])


def test_ids_mask_and_types_are_padded_to_the_longest(tmp_path):
    feeds = feeds_of(saved(tmp_path), "Good films", "the")
    assert feeds["ids"].tolist() == [[2, 4, 6, 7, 3], [2, 8, 3, 0, 0]]
    assert feeds["mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert feeds["types"].tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert [feeds[name].dtype for name in ("ids", "mask", "types")] == [np.int64, np.int64, np.int32]


def test_padding_does_not_change_an_answer(tmp_path):
    predictor = educe.predictor(saved(tmp_path, CARD + '[scores]\nactivation = "softmax"'))
    texts = ["good", "the bad films", "film", "bad film"]
    together = [answer.predictions for answer in predictor.map(texts)]
    alone = [predictor(text).predictions for text in texts]
    for many, one in zip(together, alone, strict=True):
        assert [p.label for p in many] == [p.label for p in one]
        assert [p.score for p in many] == pytest.approx([p.score for p in one], abs=1e-6)
    assert {p.label for p in alone[0]} == {"negative", "positive"}


@pytest.mark.parametrize(
    ("change", "model", "shape"),
    [
        ('pad = "max_length"', {}, (1, 6)),
        ("", {"length": 5}, (1, 5)),
        ('pad = "max_length"', {"length": 5}, (1, 5)),
        ("", {"ids_type": TensorProto.INT32}, (1, 3)),
        ("", {"ids_type": TensorProto.FLOAT}, (1, 3)),
    ],
)
def test_length_and_type_follow_card_and_signature(tmp_path, change, model, shape):
    path = saved(tmp_path, CARD + change, masked_mean_model(**model))
    ids = feeds_of(path, "film")["ids"]
    assert ids.shape == shape
    assert ids[0, :3].tolist() == [2, 6, 3]
    assert ids.dtype == educe.load(path).signature.inputs["ids"].numpy_dtype
    assert len(educe.predictor(path)("film").predictions) == 2


def test_the_tokenizers_own_pad_id_and_side_are_kept(tmp_path):
    padding = {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 8,
        "pad_type_id": 1,
        "pad_token": "the",
    }
    feeds = feeds_of(saved(tmp_path, tokenizer=wordpiece(padding=padding)), "good film", "bad")
    assert feeds["ids"].tolist() == [[2, 4, 6, 3], [8, 2, 5, 3]]
    assert feeds["mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert feeds["types"].tolist() == [[0, 1, 1, 0], [1, 0, 1, 0]]


def test_a_long_text_is_refused_with_its_tokens_or_cut(tmp_path):
    text = "good " * 20
    predictor = educe.predictor(saved(tmp_path))
    with pytest.raises(InputError, match="the text has 22 tokens, the model takes 6"):
        predictor(text)
    results = list(predictor.results(["good", text, "bad"]))
    assert [result.error is None for result in results] == [True, False, True]
    cut = saved(tmp_path, CARD + 'too_long = "truncate"')
    assert feeds_of(cut, text)["ids"].tolist() == [[2, 4, 4, 4, 4, 3]]


def test_the_line_of_a_long_text_is_named(tmp_path):
    predictor = educe.predictor(saved(tmp_path, CARD + 'unit = "line"'))
    with pytest.raises(InputError, match="line 3: the text has 22 tokens"):
        list(predictor.stream(b"good\n\n" + b"bad " * 20))


def test_a_text_without_tokens_is_refused(tmp_path):
    path = saved(tmp_path, tokenizer=wordpiece(post_processor=None))
    with pytest.raises(InputError, match="no tokens"):
        educe.predictor(path)("   ")
    with pytest.raises(InputError, match="surrogate"):
        educe.predictor(path)("film \ud800")
    with pytest.raises(InputError, match="found int"):
        educe.predictor(path)(7)


def test_one_score_of_two_classes_is_that_of_the_second(tmp_path):
    card = CARD + '[scores]\nactivation = "sigmoid"'
    found = educe.predictor(saved(tmp_path, card, masked_mean_model(classes=1)))("good film").predictions
    assert sorted(prediction.label for prediction in found) == ["negative", "positive"]
    assert sum(prediction.score for prediction in found) == pytest.approx(1.0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}', "[" * 100_000, "\x00"])
def test_a_broken_tokenizer_is_a_fault_of_the_card(tmp_path, content):
    path = saved(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CardError, match=r"tokenizer\.json"):
        educe.predictor(path)


def test_hostile_tokenizer_names_and_sizes(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(LimitError, match="tokenizer_bytes"):
        educe.predictor(path, limits=DEFAULT_LIMITS.raised(tokenizer_bytes=100))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises((ModelFileError, CardError)):
        educe.predictor(path)
    outside = tmp_path / "inner"
    outside.mkdir()
    path = saved(outside, CARD + 'tokenizer = "../tokenizer.json"')
    with pytest.raises((ModelFileError, CardError)):
        educe.predictor(path)


def test_the_card_must_fit_the_model(tmp_path):
    path = saved(tmp_path, CARD.replace('ids = "ids"', 'ids = "words"'))
    with pytest.raises(CardError, match="words"):
        educe.predictor(path)
    path = saved(tmp_path, CARD.replace("max_length = 6", "max_length = 1\ntoo_long = 'truncate'"))
    with pytest.raises((CardError, InputError), match=r"the model takes 1|too short"):
        educe.predictor(path)("good film")


def test_a_text_does_not_depend_on_its_neighbours(tmp_path):
    """Without a mask, padding would enter the arithmetic: such texts run one by one."""
    zoo = Path(__file__).parents[1] / "zoo" / "comment_spam"
    weight = np.random.default_rng(4).standard_normal((2003, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
            helper.make_node("ReduceMean", ["vectors", "axes"], ["y"], keepdims=0),
        ],
        "mean",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "table"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "tokenizer.json").write_bytes((zoo / "tokenizer.json").read_bytes())
    (tmp_path / "educe.toml").write_text(
        'task = "text-classification"\n[text]\nmax_length = 64\n[scores]\nactivation = "softmax"\n'
    )
    predictor = educe.predictor(tmp_path / "model.onnx")
    texts = ["free money now", "a much longer comment about nothing that anyone would ever buy", "hello"]
    together = [answer.predictions for answer in predictor.map(texts)]
    assert together == [predictor(text).predictions for text in texts]
    with pytest.raises(OptionError, match="would depend on another"):
        educe.predictor(tmp_path / "model.onnx", batch=2)


def test_the_name_of_a_file_is_no_text(zoo):
    predictor = educe.predictor(zoo / "comment_spam")
    with pytest.raises(InputError, match="is the name of a file"):
        predictor(str(zoo / "comment_spam" / "inputs" / "comments.txt"))
    assert predictor("you have won").input == "<str>"
