"""Cards written by hand: reading, errors that name the field, the rules, and the documentation."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import get_args

import msgspec
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from educe import cards, formats
from educe.cards.check import check_card
from educe.cards.file import parse_card, read_card
from educe.cards.presets import FOLDER, fit_preset, read_preset
from educe.errors import CardError, LimitError, OptionError
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model import Card, Model
from educe.model import card as card_module
from educe.model.card import AnchorGrid, BoxesOutput, ImageInput, Section

DOCS = Path(__file__).parents[1] / "docs" / "cards.md"
ZOO = Path(__file__).parents[1] / "zoo"
IMAGE = 'task = "image-classification"\n[image]\nsize = [8, 8]\n'
BOXES = 'task = "object-detection"\n[image]\nsize = [64, 64]\n[boxes]\n'
AUDIO = 'task = "audio-classification"\n[audio]\nsample_rate = 16000\nwindow_samples = 16000\n'
SPECTRUM = '[audio.spectrum]\nkind = "mfcc"\nframe_samples = 9\nhop_samples = 9\nfft_size = 9\n'


def one_node_model(
    shape: list[int | str],
    out: list[int | str],
    *,
    operator: str = "Identity",
    names: tuple[str, str] = ("x", "y"),
) -> Model:
    """Return a model of one node; only its signature matters."""
    node = helper.make_node(operator, [names[0]], [names[1]])
    source = helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info(names[1], TensorProto.FLOAT, out)
    graph = helper.make_graph([node], "g", [source], [result])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return formats.load(proto.SerializeToString())


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (IMAGE + "colour = 1", "[image] colour", ["unknown field", "did you mean 'color'?"]),
        ('task = "tensor"\nlicence = ""', "licence", ["unknown field", "did you mean 'license'?"]),
        ("", None, ["'task' is missing", "'image-classification'", "'tensor'"]),
        ('task = "tensor"\n[image]', "[image]", ["'size' is missing", "add size"]),
        ('task = "dance"', "task", ["'dance' is not a legal value", "'tabular-regression'"]),
        (IMAGE + 'color = "rbg"', "[image] color", ["'rbg' is not a legal value", "'bgr', 'gray', 'rgb'"]),
        (IMAGE.replace("[8, 8]", "[8, 0]"), "[image] size[1]", ["expected int >= 1, found 0"]),
        (IMAGE.replace("[8, 8]", "[8]"), "[image] size", ["expected array of length 2, found [8]"]),
        (IMAGE + 'mean = "a"', "[image] mean", ["expected array, found 'a'"]),
        (AUDIO + '[audio.spectrum]\nkind = "mel"', "[audio.spectrum] kind", ["'mel'", "'log-mel', 'mfcc'"]),
        ('task = "tensor"\nimage = 3', "image", ["expected table, found 3"]),
        ('task = "tensor"\nlabels = [1]', "labels[0]", ["expected str, found 1"]),
        ('task = "tensor"\nname = 2020-01-01', "name", ["expected str"]),
        ('task = "tensor"\n[file.thresholds]\na = 3.0', "[file] thresholds", ["<= 1.0"]),
        ("task = ", "end of document", ["is not TOML"]),
        ('task = "tensor"\nx = [1,', "end of document", ["is not TOML"]),
        ("\n= 3", "line 2, column 1", ["is not TOML"]),
        ("a = " + "[" * 5000, None, ["nested too deeply"]),
        ("a = " + "9" * 5000, None, ["is not TOML"]),
        ("a." * 50_000 + "a = 1", None, ["more than 8 parts"]),
        ('x = """y"""" # z\n[' + '"k".' * 50 + "k]", None, ["more than 8 parts"]),
    ],
)
def test_a_wrong_card_is_told_where_and_what(text: str, place: str | None, words: list[str]) -> None:
    with pytest.raises(CardError) as caught:
        parse_card(text, Path("educe.toml"))
    assert caught.value.path == "educe.toml"
    assert caught.value.place == place
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("unit", ['"\\"', "'", '"', '"""', "a.", "a = 1.5\n", "[", "{a=", "#", "\\"])
def test_parsing_takes_time_in_proportion_to_the_text(unit: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CardError):
        parse_card(unit * (100_000 // len(unit)))
    assert time.perf_counter() - start < 20


def test_dots_in_strings_comments_and_numbers_are_no_keys() -> None:
    dots = "a." * 40
    card = parse_card(f'task = "tensor" # {dots}\nname = "{dots}"\nsource = """{dots}\n{dots}"""\n')
    assert card.name == dots
    numbers = ", ".join(["0.5"] * 100)
    with pytest.raises(CardError, match="length 2"):
        parse_card(IMAGE + f"range = [{numbers}]")


def test_a_card_that_is_not_utf8_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "educe.toml"
    path.write_bytes(b'task = "tensor"\nname = "\xff"')
    with pytest.raises(CardError) as caught:
        read_card(path, DEFAULT_LIMITS)
    assert caught.value.place == "byte 24"
    with pytest.raises(LimitError):
        read_card(path, Limits(card_bytes=10))
    with pytest.raises(CardError, match="cannot be opened"):
        read_card(tmp_path / "absent.toml", DEFAULT_LIMITS)


def test_labels_come_from_a_file_beside_the_card(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\nÄpfel\n\nlast\n".encode())
    path = tmp_path / "educe.toml"
    path.write_bytes(b'\xef\xbb\xbftask = "tensor"\r\nlabels = "names.txt"\r\n')
    assert read_card(path, DEFAULT_LIMITS).labels == ("cat", "Äpfel", "", "last")


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "link.txt", "absent.txt", "folder", ""])
def test_a_label_file_stays_beneath_the_card(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    path = folder / "educe.toml"
    path.write_text(f'task = "tensor"\nlabels = "{name}"')
    with pytest.raises(CardError) as caught:
        read_card(path, DEFAULT_LIMITS)
    assert caught.value.place == f"labels: {name}"
    assert "secret" not in str(caught.value).replace("secret.txt", "")


def test_a_label_file_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("x\n" * 100)
    (tmp_path / "educe.toml").write_text('task = "tensor"\nlabels = "names.txt"')
    with pytest.raises(LimitError):
        read_card(tmp_path / "educe.toml", Limits(card_bytes=100))


PICTURES = one_node_model(["N", 3, 8, 8], ["N", 3])
DETECTOR = one_node_model([1, 3, 64, 64], [1, 6, 84])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('task = "image-classification"', "[image]"),
        ('task = "object-detection"\n[image]\nsize = [8, 8]', "[boxes]"),
        ('task = "audio-classification"', "[audio]"),
        ('task = "text-classification"', "[text]"),
        ('task = "file-type"', "[file]"),
        ('task = "tabular-regression"', "[table]"),
        (IMAGE + "mean = [0.5, 0.5]", "[image] mean"),
        (IMAGE + "std = [0.5, 0.0, 0.5]", "[image] std"),
        (IMAGE + "std = [1e-320]", "[image] std"),
        (IMAGE + "std = [nan]", "image.std[0]"),
        (IMAGE + "range = [0.0, inf]", "image.range[1]"),
        (IMAGE + "range = [1.0, 0.0]", "[image] range"),
        (IMAGE + "shorter_side = 9", "[image] shorter_side"),
        (IMAGE + 'fit = "crop"\nshorter_side = 7', "[image] shorter_side"),
        (IMAGE + 'antialias = false\nfilter = "bicubic"', "[image] antialias"),
        (IMAGE + 'input = "z"', "[image] input"),
        (IMAGE + 'layout = "nhwc"', "[image] size"),
        (IMAGE + 'color = "gray"', "[image] size"),
        (IMAGE.replace("[8, 8]", "[8, 9]"), "[image] size"),
        (IMAGE + '[scores]\noutput = "z"', "[scores] output"),
        ('labels = ["a"]\n' + IMAGE, "labels"),
        ('state = {z = "y"}\n' + IMAGE, "state.z"),
        ('state = {x = "z"}\n' + IMAGE, "state.x"),
        ("constants = {z = 1}\n" + IMAGE, "constants.z"),
        ("constants = {x = nan}\n" + IMAGE, "constants.x"),
        ("constants = {x = 1e300}\n" + IMAGE, "constants.x"),
        (AUDIO + "context_samples = 999999999999", "[audio] context_samples"),
        (AUDIO + SPECTRUM + "low_hz = 9000.0", "[audio.spectrum] high_hz"),
        ('task = "file-type"\n[file]\nbegin = 5000', "[file] begin"),
        ('task = "file-type"\n[file]\npadding = 99999999999', "[file] padding"),
        ('task = "text-classification"\n[text]\nmax_length = 99999999', "[text] max_length"),
    ],
)  # fmt: skip
def test_a_card_that_breaks_a_rule(text: str, place: str) -> None:
    with pytest.raises(CardError) as caught:
        check_card(parse_card(text), PICTURES, DEFAULT_LIMITS, Path("educe.toml"))
    assert caught.value.place == place
    assert caught.value.path == "educe.toml"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (BOXES + 'decoder = "yolox"\nstrides = []', "[boxes] strides"),
        (BOXES + 'decoder = "ssd"', "[boxes] scores"),
        (BOXES + 'decoder = "ultraface"', "[boxes] scores"),
        (BOXES + 'decoder = "ssd"\nscores = "y"', "[boxes.anchors]"),
        ('labels = ["a"]\n' + BOXES + 'decoder = "yolov8"', "labels"),
    ],
)
def test_a_detector_card_that_breaks_a_rule(text: str, place: str) -> None:
    with pytest.raises(CardError) as caught:
        check_card(parse_card(text), DETECTOR, DEFAULT_LIMITS)
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("scales", (0.1,), "scales"),
        ("scales", (0.1, 0.0), "scales"),
        ("aspect_ratios", ((1.0,), (2.0,)), "aspect_ratios"),
        ("aspect_ratios", ((-1.0,),), "aspect_ratios"),
        ("variances", (0.0, 0.1), "variances"),
        ("maps", ((10_000, 10_000),), "maps"),
    ],
)
def test_anchors_must_be_consistent_and_bounded(field: str, value: object, place: str) -> None:
    anchors = AnchorGrid(maps=((4, 4),), scales=(0.1, 0.2), aspect_ratios=((1.0, 2.0),))
    anchors = msgspec.structs.replace(anchors, **{field: value})
    boxes = BoxesOutput(decoder="ssd", scores="y", anchors=anchors)
    card = Card(task="object-detection", image=ImageInput(size=(64, 64)), boxes=boxes)
    with pytest.raises(CardError) as caught:
        check_card(card, DETECTOR, DEFAULT_LIMITS)
    assert caught.value.place == f"[boxes.anchors] {place}"


def test_a_card_that_fits_passes_and_a_huge_picture_does_not() -> None:
    check_card(parse_card('labels = ["a", "b", "c"]\n' + IMAGE), PICTURES, DEFAULT_LIMITS)
    check_card(parse_card('labels = ["a", "b"]\n' + BOXES + 'decoder = "yolov8"'), DETECTOR, DEFAULT_LIMITS)
    free = one_node_model(["N", 3, "H", "W"], ["N", 1])
    check_card(parse_card('labels = ["no", "yes"]\n' + IMAGE), free, DEFAULT_LIMITS)
    with pytest.raises(LimitError):
        check_card(parse_card(IMAGE.replace("8, 8", "100000, 100000")), free, DEFAULT_LIMITS)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_card_or_a_typed_error(content: bytes) -> None:
    with contextlib.suppress(CardError):
        parse_card(content.decode("utf-8", "replace"))


FIELDS = [
    "size",
    "mean",
    "range",
    "labels",
    "decoder",
    "kind",
    "task",
    "columns",
    "state",
    "constants",
    "anchors",
]
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["image", "audio", "text", "file", "table", "boxes", "labels", "state", "constants"]),
    VALUES,
)
@settings(max_examples=300, deadline=None)
def test_any_values_give_a_card_or_a_typed_error(field: str, value: object) -> None:
    lines = cards.file._table_lines({"task": "tensor", field: value}, ())
    with contextlib.suppress(CardError, LimitError):
        check_card(parse_card("\n".join(lines)), PICTURES, DEFAULT_LIMITS)


@pytest.mark.parametrize("path", sorted(ZOO.glob("*/educe.toml")) + sorted(FOLDER.glob("*.toml")), ids=str)
def test_a_card_survives_being_written(path: Path) -> None:
    card = read_card(path, DEFAULT_LIMITS)
    assert parse_card(cards.card_toml(card)) == card


@given(
    st.text(max_size=20),
    st.lists(st.text(max_size=8), max_size=4),
    st.dictionaries(st.text(max_size=5), st.text()),
)
@settings(max_examples=200, deadline=None)
def test_any_text_survives_being_written(name: str, labels: list[str], state: dict[str, str]) -> None:
    card = Card(task="tensor", name=name, labels=tuple(labels), state=state)
    assert parse_card(cards.card_toml(card)) == card


@pytest.mark.parametrize("name", cards.preset_names())
def test_every_preset_is_a_card(name: str) -> None:
    card = read_preset(name, DEFAULT_LIMITS)
    if card.task == "object-detection":
        assert card.labels[:3] == ("person", "bicycle", "car")
        assert len(card.labels) == 80
    assert f"`{name}`" in DOCS.read_text(encoding="utf-8")


def test_the_presets_and_an_unknown_one() -> None:
    assert {"imagenet", "yolox", "yolov5", "yolov8", "silero-vad", "magika"} <= set(cards.preset_names())
    with pytest.raises(OptionError, match="did you mean 'imagenet'"):
        read_preset("imagnet", DEFAULT_LIMITS)
    with pytest.raises(OptionError):
        read_preset("../presets/imagenet", DEFAULT_LIMITS)


def test_a_preset_takes_size_layout_activation_and_labels_from_the_model() -> None:
    preset = read_preset("imagenet", DEFAULT_LIMITS)
    fitted = fit_preset(preset, one_node_model(["N", 448, 448, 3], ["N", 9], operator="Softmax"))
    assert fitted.image is not None
    assert (fitted.image.size, fitted.image.shorter_side, fitted.image.layout) == ((448, 448), 512, "nhwc")
    assert fitted.scores.activation == "none"
    assert fit_preset(preset, one_node_model(["N", 3, "H", "W"], ["N", 9])) == preset
    assert fit_preset(read_preset("yolov8", DEFAULT_LIMITS), DETECTOR).labels == ()


def test_the_documentation_names_every_field_in_its_section_and_every_decoder() -> None:
    text = DOCS.read_text(encoding="utf-8")
    chapters = dict(re.findall(r"^#+ (.*?)$(.*?)(?=^#|\Z)", text, re.M | re.S))
    kinds = [
        kind for kind in vars(card_module).values() if isinstance(kind, type) and issubclass(kind, Section)
    ]
    for kind in kinds:
        name = re.match(r"``\[(.*?)\]``", kind.__doc__ or "")
        wanted = f"`[{name[1]}]`" if name else "The whole card"
        body = next(body for heading, body in chapters.items() if heading.startswith(wanted))
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in body, f"{kind.__name__}.{field.name}"
    assert len(kinds) > 10
    decoder = next(field.type for field in msgspec.structs.fields(BoxesOutput) if field.name == "decoder")
    for name in get_args(decoder):
        assert f"| `{name}` |" in text


def test_the_cards_in_the_documentation_are_cards() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert parse_card(block).task


def test_the_zoo_has_cards_that_fit() -> None:
    paths = sorted(ZOO.glob("*/educe.toml"))
    assert paths
    for path in paths:
        proto = onnx.load(path.with_name("model.onnx"))
        model = formats.load(proto.SerializeToString())
        check_card(read_card(path, DEFAULT_LIMITS), model, DEFAULT_LIMITS, path)
