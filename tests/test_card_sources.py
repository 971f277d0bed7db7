"""Where a card comes from: the order of the sources, metadata, Hugging Face's files, and the guess."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from educe import cards, formats
from educe.errors import CardError, LimitError, OptionError
from educe.limits import Limits
from educe.model import Card, Model
from educe.model.card import ImageInput

ZOO = Path(__file__).parents[1] / "zoo"
Shape = list[int | str | None]
FLOAT, UINT8, INT32, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64

PICTURE: dict[str, tuple[int, Shape]] = {"x": (FLOAT, ["N", 3, 64, 64])}
TOKENS: dict[str, tuple[int, Shape]] = {
    "input_ids": (INT64, ["N", "T"]),
    "attention_mask": (INT64, ["N", "T"]),
}


def save_model(
    folder: Path,
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, Shape],
    *,
    operator: str = "Identity",
    metadata: dict[str, str] | None = None,
    name: str = "model.onnx",
) -> Path:
    """Write a model whose nodes join the first input to each output; only its signature matters."""
    first, dtype = next(iter(inputs)), next(iter(inputs.values()))[0]
    nodes = [helper.make_node("Cast", [first], [f"{key}_in"], to=FLOAT) for key in outputs]
    nodes += [helper.make_node(operator, [f"{key}_in"], [key]) for key in outputs]
    sources = [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()]
    results = [helper.make_tensor_value_info(key, FLOAT, shape) for key, shape in outputs.items()]
    assert dtype != TensorProto.STRING
    graph = helper.make_graph(nodes, "g", sources, results)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, metadata or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(proto.SerializeToString())
    return folder / name


def resolved(path: Path, card: str | Path | Card | None = None, **limits: int) -> Model:
    return cards.resolve(formats.load(path), card, Limits(**limits))


def image_toml(name: str, extra: str = "") -> str:
    return f'task = "image-classification"\nname = "{name}"\n{extra}[image]\nsize = [64, 64]\n'


def test_the_first_source_wins_whole(tmp_path: Path) -> None:
    names = str({0: "a", 1: "b"})
    metadata = {
        "educe.card": image_toml("in the file"),
        "names": names, "stride": "32", "task": "classify", "imgsz": "[64, 64]",
    }  # fmt: skip
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]}, metadata=metadata)
    write_json(tmp_path / "config.json", VIT_CONFIG)
    write_json(tmp_path / "preprocessor_config.json", VIT)
    (tmp_path / "educe.toml").write_text(image_toml("shared"))
    (tmp_path / "model.educe.toml").write_text(image_toml("own"))
    (tmp_path / "other.toml").write_text(image_toml("other"))

    given = Card(task="image-classification", name="given", image=ImageInput(size=(64, 64)))
    assert source_and_name(resolved(path, given)) == ("given", "given")
    assert source_and_name(resolved(path, tmp_path / "other.toml")) == ("other.toml", "other")
    assert source_and_name(resolved(path, str(tmp_path / "other.toml"))) == ("other.toml", "other")
    assert resolved(path, "imagenet").card_origin.source == "preset imagenet"
    assert source_and_name(resolved(path)) == ("model.educe.toml", "own")
    (tmp_path / "model.educe.toml").unlink()
    assert source_and_name(resolved(path)) == ("educe.toml", "shared")
    assert resolved(path).card_origin.folder == tmp_path
    (tmp_path / "educe.toml").write_text(image_toml("shared", 'model = "another.onnx"\n'))
    assert source_and_name(resolved(path)) == ("metadata (educe)", "in the file")

    del metadata["educe.card"]
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]}, metadata=metadata)
    assert resolved(path).card_origin.source == "metadata (ultralytics)"
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]})
    assert resolved(path).card_origin.source == "config.json + preprocessor_config.json"
    (tmp_path / "config.json").unlink()
    guessed = resolved(path)
    assert guessed.card_origin.source == "signature"
    assert guessed.card_origin.guessed
    assert guessed.notes == ()


def source_and_name(model: Model) -> tuple[str, str]:
    assert not model.card_origin.guessed
    return model.card_origin.source, model.name


def test_a_card_named_for_this_file_is_taken(tmp_path: Path) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]})
    (tmp_path / "educe.toml").write_text(image_toml("mine", 'model = "model.onnx"\n'))
    assert resolved(path).name == "mine"


def test_what_the_caller_names_must_be_right(tmp_path: Path) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]})
    with pytest.raises(OptionError, match="did you mean 'mobilenet'"):
        resolved(path, "mobilnet")
    with pytest.raises(CardError, match="cannot be opened"):
        resolved(path, tmp_path / "absent.toml")
    with pytest.raises(CardError, match="has no input 'z'"):
        resolved(path, Card(task="image-classification", image=ImageInput(size=(64, 64), input="z")))
    with pytest.raises(CardError) as caught:
        resolved(path, "mnist")
    assert caught.value.place == "[image] size"


def test_a_mistake_in_a_card_beside_the_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]})
    (tmp_path / "educe.toml").write_text(image_toml("mine") + "colour = 1")
    with pytest.raises(CardError) as caught:
        resolved(path)
    assert caught.value.path == str(tmp_path / "educe.toml")
    assert caught.value.place == "[image] colour"


def test_a_card_in_the_file_may_name_labels_beside_it(tmp_path: Path) -> None:
    text = image_toml("mine", 'labels = "names.txt"\n')
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]}, metadata={"educe.card": text})
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert resolved(path).card.labels == ("cat", "dog")
    with pytest.raises(CardError, match="cannot name a label file"):
        cards.resolve(formats.load(path.read_bytes()))
    with pytest.raises(LimitError):
        resolved(path, card_bytes=20)


def test_a_mistake_in_a_card_in_the_file_is_an_error(tmp_path: Path) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]}, metadata={"educe.card": 'task = "dance"'})
    with pytest.raises(CardError) as caught:
        resolved(path)
    assert caught.value.place == "metadata educe.card: task"
    assert caught.value.path == str(path)


def ultralytics(**changes: str) -> dict[str, str]:
    properties = {
        "description": "Ultralytics YOLOv8n model", "author": "Ultralytics", "stride": "32", "task": "detect",
        "batch": "1", "imgsz": "[64, 64]", "names": "{0: 'person', 1: \"driver's seat\"}",
        "args": "{'batch': 1, 'nms': False}", "channels": "3",
    }  # fmt: skip
    return {**properties, **changes}


def test_ultralytics_detector(tmp_path: Path) -> None:
    model = resolved(save_model(tmp_path, PICTURE, {"output0": [1, 6, 84]}, metadata=ultralytics()))
    assert model.card_origin.source == "metadata (ultralytics)"
    assert model.card.labels == ("person", "driver's seat")
    assert model.card.boxes is not None
    assert (model.card.boxes.decoder, model.card.boxes.iou_threshold) == ("yolov8", 0.7)
    assert model.card.image == ImageInput(size=(64, 64), fit="letterbox", antialias=False)


def test_ultralytics_size_has_the_height_first_and_channels_give_the_colour(tmp_path: Path) -> None:
    inputs: dict[str, tuple[int, Shape]] = {"images": (FLOAT, ["batch", 1, "height", "width"])}
    metadata = ultralytics(imgsz="[480, 640]", channels="1")
    model = resolved(save_model(tmp_path, inputs, {"output0": ["batch", 6, "anchors"]}, metadata=metadata))
    assert model.card.image is not None
    assert (model.card.image.size, model.card.image.color) == ((640, 480), "gray")


def test_yolov5_metadata_has_names_and_stride_only(tmp_path: Path) -> None:
    metadata = {"stride": "32", "names": "['person', 'car']"}
    model = resolved(save_model(tmp_path, PICTURE, {"output0": [1, 252, 7]}, metadata=metadata))
    assert model.card.boxes is not None
    assert model.card.boxes.decoder == "yolov5"
    assert model.card.labels == ("person", "car")


@pytest.mark.parametrize(("operator", "activation"), [("Softmax", "none"), ("Identity", "softmax")])
def test_ultralytics_classifier(tmp_path: Path, operator: str, activation: str) -> None:
    metadata = ultralytics(task="classify")
    path = save_model(tmp_path, PICTURE, {"output0": [1, 2]}, metadata=metadata, operator=operator)
    model = resolved(path)
    assert model.card.task == "image-classification"
    assert model.card.image == ImageInput(size=(64, 64), fit="crop", shorter_side=64)
    assert model.card.scores.activation == activation


@pytest.mark.parametrize(
    ("changes", "shape", "words"),
    [
        ({"task": "segment"}, [1, 6, 84], "'segment'"),
        ({"end2end": "True"}, [1, 300, 6], "drops overlapping boxes"),
        ({"args": "{'batch': 1, 'nms': True}"}, [1, 300, 6], "drops overlapping boxes"),
        ({}, [1, 300, 6], "expected one output [N,6,boxes] or [N,boxes,7]"),
        ({"imgsz": "[[0]]"}, [1, 6, 84], "[height, width]"),
        ({"channels": "4"}, [1, 6, 84], "1 or 3 channels"),
        ({"names": "{0: __import__('os')}"}, [1, 6, 84], "names by index"),
        ({"names": "{0: 'a', 2: 'b'}"}, [1, 6, 84], "names by index"),
        ({"names": "(" * 100_000}, [1, 6, 84], "names by index"),
        ({"names": "{0: '\\x'}"}, [1, 6, 84], "expected a string"),
        ({"names": "'a'"}, [1, 6, 84], "names by index"),
        ({"names": "{"}, [1, 6, 84], "expected a dictionary"),
        ({"names": ""}, [1, 6, 84], "expected a dictionary"),
    ],
)
def test_ultralytics_metadata_that_no_card_can_say_leaves_a_note(
    tmp_path: Path, changes: dict[str, str], shape: Shape, words: str
) -> None:
    model = resolved(save_model(tmp_path, PICTURE, {"output0": shape}, metadata=ultralytics(**changes)))
    assert model.card_origin.source == "signature"
    assert len(model.notes) == 1
    assert model.notes[0].startswith("metadata (ultralytics) was not used: ")
    assert words in model.notes[0]


VIT_CONFIG = {
    "architectures": ["ViTForImageClassification"], "model_type": "vit", "id2label": {"1": "dog", "0": "cat"},
}  # fmt: skip
VIT = {
    "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": 64, "width": 64},
}  # fmt: skip
CONVNEXT = {**VIT, "image_processor_type": "ConvNextImageProcessor", "resample": 3, "crop_pct": 0.875}
CLIP = {
    **VIT,
    "image_processor_type": "CLIPImageProcessorFast",
    "do_center_crop": True,
    "crop_size": 64,
    "size": 70,
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def huggingface(
    folder: Path, config: Any, preprocessor: Any, inputs: Any = None, outputs: Any = None
) -> Model:
    path = save_model(folder, inputs or PICTURE, outputs or {"logits": ["N", 2]})
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor)
    return resolved(path)


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (VIT, ImageInput(size=(64, 64), **HALF)),
        ({**VIT, "size": 64, "resample": 0}, ImageInput(size=(64, 64), filter="nearest", **HALF)),
        ({**VIT, "do_normalize": False}, ImageInput(size=(64, 64))),
        ({**VIT, "do_rescale": False}, ImageInput(size=(64, 64), range=(0.0, 255.0), **HALF)),
        ({**VIT, "rescale_factor": 1 / 127.5}, ImageInput(size=(64, 64), range=(0.0, 2.0), **HALF)),
        ({**VIT, "image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"},
         ImageInput(size=(64, 64), **HALF)),
        ({**CONVNEXT, "size": {"shortest_edge": 64}},
         ImageInput(size=(64, 64), fit="crop", shorter_side=73, filter="bicubic", **HALF)),
        ({**CONVNEXT, "size": 64, "crop_pct": None},
         ImageInput(size=(64, 64), fit="crop", shorter_side=73, filter="bicubic", **HALF)),
        (CLIP, ImageInput(size=(64, 64), fit="crop", shorter_side=70, **HALF)),
        ({**CLIP, "image_processor_type": "LevitImageProcessor"},
         ImageInput(size=(64, 64), fit="crop", shorter_side=80, **HALF)),
        ({**CLIP, "image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True,
          "do_normalize": None, "image_mean": None, "image_std": None},
         ImageInput(size=(64, 64), fit="crop", shorter_side=70, color="bgr")),
        ({**VIT, "image_processor_type": "EfficientNetImageProcessor", "include_top": True},
         ImageInput(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))),
        ({**CLIP, "image_processor_type": "DeiTImageProcessor", "size": 64},
         ImageInput(size=(64, 64), **HALF)),
    ],
)  # fmt: skip
def test_image_processors(tmp_path: Path, fields: Any, expected: ImageInput) -> None:
    model = huggingface(tmp_path, VIT_CONFIG, fields)
    assert model.notes == ()
    assert model.card_origin.source == "config.json + preprocessor_config.json"
    assert model.card.image == expected
    assert model.card.labels == ("cat", "dog")
    assert model.card.scores.activation == "softmax"


def test_convnext_stretches_from_384_pixels(tmp_path: Path) -> None:
    inputs = {"pixel_values": (FLOAT, ["N", 3, "H", "W"])}
    model = huggingface(tmp_path, VIT_CONFIG, {**CONVNEXT, "size": {"shortest_edge": 384}}, inputs)
    assert model.card.image == ImageInput(size=(384, 384), filter="bicubic", **HALF)


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        (VIT_CONFIG, {**VIT, "image_processor_type": "DonutImageProcessor"}, "DonutImageProcessor"),
        (VIT_CONFIG, {**VIT, "do_pad": True}, "do_pad"),
        (VIT_CONFIG, {**VIT, "do_resize": False}, "do_resize"),
        (VIT_CONFIG, {**VIT, "resample": 9}, "filter number 9"),
        (VIT_CONFIG, {**VIT, "size": {"longest_edge": 9}}, "longest_edge"),
        (VIT_CONFIG, {**VIT, "size": 32}, "makes [N,3,32,32]"),
        (VIT_CONFIG, {**VIT, "size": -1}, "1 or more"),
        (VIT_CONFIG, {**VIT, "image_std": [0, 0, 0]}, "it is 0"),
        (VIT_CONFIG, {**VIT, "image_std": None}, "image_std must be set"),
        (VIT_CONFIG, {**VIT, "image_mean": "x"}, "not what was expected"),
        (VIT_CONFIG, {**VIT, "rescale_offset": True}, "rescale_offset"),
        (VIT_CONFIG, {**CLIP, "image_processor_type": "DeiTImageProcessor"}, "crop_size"),
        (VIT_CONFIG, {**CONVNEXT, "size": 64, "crop_pct": 0.0}, "crop_pct"),
        (VIT_CONFIG, {**CONVNEXT, "size": 64, "crop_pct": 1e-9}, "image_pixels"),
        (VIT_CONFIG, {**CONVNEXT, "size": 64, "crop_pct": -1.0}, "crop_pct"),
        (VIT_CONFIG, [1], "not what was expected"),
        ({**VIT_CONFIG, "id2label": {"0": "a"}}, VIT, "1 labels"),
        ({**VIT_CONFIG, "id2label": {"0": "a", "x": "b"}}, VIT, "names by index"),
        ({**VIT_CONFIG, "problem_type": "regression"}, VIT, "a number, not a class"),
        ([], VIT, "not what was expected"),
        ({"architectures": 3}, VIT, "not what was expected"),
    ],
)
def test_what_no_card_can_say_leaves_a_note_and_a_guess(
    tmp_path: Path, config: Any, fields: Any, words: str
) -> None:
    model = huggingface(tmp_path, config, fields)
    assert model.card_origin.guessed
    assert len(model.notes) == 1
    assert model.notes[0].startswith("config.json was not used: ")
    assert words in model.notes[0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b'{"id2label": {"0": 1}}']
)
def test_broken_json_leaves_a_note(tmp_path: Path, content: bytes) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]})
    (tmp_path / "config.json").write_bytes(content)
    assert resolved(path).notes[0].startswith("config.json was not used: ")
    assert "card_bytes" in resolved(path, card_bytes=2).notes[0] or len(content) <= 2


def test_a_config_of_something_else_is_passed_over(tmp_path: Path) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]})
    write_json(tmp_path / "config.json", {"port": 8080})
    assert resolved(path).notes == ()


def test_an_architecture_without_a_task_gives_tensors_and_says_so(tmp_path: Path) -> None:
    model = huggingface(tmp_path, {"architectures": ["BertModel"]}, {}, TOKENS)
    assert model.card == Card(task="tensor")
    assert model.card_origin.source == "config.json"
    assert "BertModel" in model.notes[0]


def test_the_config_may_be_one_folder_above(tmp_path: Path) -> None:
    path = save_model(tmp_path / "onnx", PICTURE, {"logits": ["N", 2]})
    write_json(tmp_path / "config.json", VIT_CONFIG)
    write_json(tmp_path / "preprocessor_config.json", VIT)
    model = resolved(path)
    assert model.card.labels == ("cat", "dog")
    assert model.card_origin.folder is not None
    assert model.card_origin.folder.resolve() == tmp_path


TIMM = {
    "architecture": "resnet50", "num_classes": 2,
    "pretrained_cfg": {
        "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
    "label_names": ["n01", "n02"], "label_descriptions": {"n01": "tench"},
}  # fmt: skip


def test_timm(tmp_path: Path) -> None:
    inputs = {"x": (FLOAT, ["N", 3, "H", "W"])}
    model = huggingface(tmp_path, TIMM, {}, inputs)
    assert model.card_origin.source == "config.json (timm)"
    assert model.card.labels == ("tench", "n02")
    image = model.card.image
    assert image is not None
    assert (image.size, image.shorter_side, image.fit, image.filter) == ((224, 224), 235, "crop", "bicubic")
    assert image.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("change", [{"crop_pct": 0}, {"crop_mode": "border"}, {"interpolation": "random"}])
def test_timm_that_no_card_can_say(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {**TIMM, "pretrained_cfg": {**TIMM["pretrained_cfg"], **change}}  # type: ignore[dict-item]
    assert huggingface(tmp_path, config, {}).notes


TEXT_CONFIG = {
    "architectures": ["RobertaForSequenceClassification"], "model_type": "roberta", "pad_token_id": 1,
    "max_position_embeddings": 514, "id2label": {"0": "negative", "1": "positive"},
}  # fmt: skip


def save_text_model(folder: Path, config: Any, tokenizer: Any, *, tokenizer_config: Any = None) -> Path:
    path = save_model(folder, TOKENS, {"logits": ["N", 2]})
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", tokenizer)
    if tokenizer_config is not None:
        write_json(folder / "tokenizer_config.json", tokenizer_config)
    return path


def test_text_classification(tmp_path: Path) -> None:
    path = save_text_model(
        tmp_path, TEXT_CONFIG, {"truncation": None}, tokenizer_config={"model_max_length": 10**30}
    )
    model = resolved(path)
    assert model.notes == ()
    assert model.card_origin.source == "config.json + tokenizer.json"
    assert model.card_origin.folder == tmp_path
    text = model.card.text
    assert text is not None
    assert (text.max_length, text.too_long, text.pad) == (512, "error", "longest")
    assert (text.ids, text.mask, text.types) == ("input_ids", "attention_mask", None)
    assert (model.card.scores.output, model.card.scores.activation) == ("logits", "softmax")


def test_text_that_is_cut_and_scores_of_many_labels(tmp_path: Path) -> None:
    config = {**TEXT_CONFIG, "model_type": "bert", "problem_type": "multi_label_classification"}
    tokenizer = {"truncation": {"max_length": 128}}
    model = resolved(save_text_model(tmp_path, config, tokenizer, tokenizer_config={"model_max_length": 128}))
    assert model.card.text is not None
    assert (model.card.text.max_length, model.card.text.too_long) == (128, "truncate")
    assert model.card.scores.activation == "sigmoid"


@pytest.mark.parametrize(
    ("config", "tokenizer", "words"),
    [
        ({**TEXT_CONFIG, "max_position_embeddings": None}, {}, "how many tokens"),
        ({**TEXT_CONFIG, "max_position_embeddings": -5}, {}, "how many tokens"),
        (TEXT_CONFIG, [], "not what was expected"),
    ],
)
def test_text_files_that_do_not_say_enough(tmp_path: Path, config: Any, tokenizer: Any, words: str) -> None:
    model = resolved(save_text_model(tmp_path, config, tokenizer))
    assert words in model.notes[0]
    assert model.card_origin.guessed


def test_no_tokenizer_file(tmp_path: Path) -> None:
    path = save_text_model(tmp_path, TEXT_CONFIG, {})
    (tmp_path / "tokenizer.json").unlink()
    model = resolved(path)
    assert "tokenizer.json" in model.notes[0]
    assert model.card.task == "tensor"


AUDIO_CONFIG = {"architectures": ["Wav2Vec2ForAudioClassification"], "id2label": {"0": "yes", "1": "no"}}
WAV2VEC2 = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "sampling_rate": 16000,
    "do_normalize": False,
}


def test_audio_classification(tmp_path: Path) -> None:
    model = huggingface(tmp_path, AUDIO_CONFIG, WAV2VEC2, {"input_values": (FLOAT, ["N", 16000])})
    assert model.notes == ()
    assert model.card.audio is not None
    assert (model.card.audio.sample_rate, model.card.audio.window_samples) == (16000, 16000)


@pytest.mark.parametrize(
    ("change", "length", "words"),
    [
        ({"do_normalize": True}, 16000, "zero mean"),
        ({}, "T", "how many samples"),
        ({"feature_extractor_type": "ASTFeatureExtractor"}, 16000, "ASTFeatureExtractor"),
        ({"sampling_rate": 0}, 16000, "rate of 1 or more"),
    ],
)
def test_audio_that_no_card_can_say(tmp_path: Path, change: Any, length: Any, words: str) -> None:
    model = huggingface(
        tmp_path, AUDIO_CONFIG, {**WAV2VEC2, **change}, {"input_values": (FLOAT, ["N", length])}
    )
    assert words in model.notes[0]
    assert model.card.task == "tensor"


def guess_of(folder: Path, inputs: Any, outputs: Any, operator: str = "Identity") -> Card:
    model = resolved(save_model(folder, inputs, outputs, operator=operator))
    assert model.card_origin.source == "signature"
    assert model.card_origin.guessed
    return model.card


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (FLOAT, ["N", 3, None, None],
         {"size": (224, 224), "shorter_side": 256, "layout": "nchw", "color": "rgb"}),
        (FLOAT, [1, 96, 128, 3],
         {"size": (128, 96), "shorter_side": 146, "layout": "nhwc", "std": (0.229, 0.224, 0.225)}),
        (FLOAT, [1, 1, 28, 28], {"size": (28, 28), "color": "gray", "mean": (0.0,), "range": (0.0, 1.0)}),
        (UINT8, [1, 64, 64, 3], {"layout": "nhwc", "mean": (0.0,), "std": (1.0,), "range": (0.0, 255.0)}),
    ],
)  # fmt: skip
def test_a_picture_and_classes_are_guessed(
    tmp_path: Path, dtype: int, shape: Shape, expected: dict[str, Any]
) -> None:
    card = guess_of(tmp_path, {"x": (dtype, shape)}, {"y": ["N", 10]})
    assert card.task == "image-classification"
    assert {name: getattr(card.image, name) for name in expected} == expected
    assert card.scores.activation == "softmax"


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid"])
def test_an_activation_in_the_graph_is_not_repeated(tmp_path: Path, operator: str) -> None:
    assert guess_of(tmp_path, PICTURE, {"y": ["N", 10]}, operator).scores.activation == "none"


@pytest.mark.parametrize(
    ("shape", "operator", "decoder", "num_labels"),
    [
        ([1, 84, 84], "Identity", None, 0),
        ([1, 7, 84], "Identity", "yolov8", 0),
        ([1, 252, 85], "Identity", "yolov5", 80),
        ([1, 84, 8], "Identity", "yolox", 0),
        ([1, 84, 8], "Exp", "yolov5", 0),
        ([1, 84, 5], "Identity", None, 0),
        ([1, 300, 6], "Identity", None, 0),
        (["N", "boxes", 85], "Identity", None, 0),
    ],
)
def test_detectors_are_guessed(
    tmp_path: Path, shape: Shape, operator: str, decoder: str | None, num_labels: int
) -> None:
    card = guess_of(tmp_path, PICTURE, {"y": shape}, operator)
    assert (card.boxes.decoder if card.boxes is not None else None) == decoder
    assert card.task == ("object-detection" if decoder else "tensor")
    assert len(card.labels) == num_labels
    if decoder is not None:
        assert card.image is not None
        assert card.image.color == ("bgr" if shape == [1, 84, 8] else "rgb")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": (FLOAT, ["N", 40])}, {"y": ["N", 3]}),
        ({"x": (FLOAT, ["N", 3, 64, 64]), "z": (FLOAT, ["N"])}, {"y": ["N", 3]}),
        (PICTURE, {"y": ["N", 1]}),
        (PICTURE, {"y": ["N", 3], "z": ["N", 4]}),
        (PICTURE, {"y": ["N", 21, 64, 64]}),
        ({"x": (FLOAT, ["N", 49, 10, 1])}, {"y": ["N", 12]}),
        ({"x": (FLOAT, [1, 3, 100_000, 100_000])}, {"y": ["N", 12]}),
        (TOKENS, {"y": ["N", 2]}),
        ({"bytes": (INT64, ["N", 2048])}, {"y": ["N", 2]}),
    ],
)
def test_what_fits_no_rule_gives_tensors(tmp_path: Path, inputs: Any, outputs: Any) -> None:
    assert guess_of(tmp_path, inputs, outputs) == Card(task="tensor")


def test_text_is_guessed_only_with_a_tokenizer(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", {})
    card = guess_of(tmp_path, TOKENS, {"y": ["N", 2]})
    assert card.task == "text-classification"
    assert card.text is not None
    assert (card.text.max_length, card.text.mask) == (512, "attention_mask")
    extra = {**TOKENS, "position_ids": (INT64, ["N", "T"])}
    assert guess_of(tmp_path, extra, {"y": ["N", 2]}).task == "tensor"


@pytest.mark.parametrize(
    ("name", "task", "activation"),
    [
        ("mobilenet_v2", "image-classification", "softmax"),
        ("gtsrb", "image-classification", "none"),
        ("mnist", "image-classification", "softmax"),
        ("yolox_nano", "object-detection", "none"),
        ("silero_vad", "voice-activity-detection", "none"),
        ("magika", "file-type", "none"),
        ("comment_spam", "text-classification", "none"),
        ("kws", "tensor", "none"),
        ("breast_cancer", "tensor", "none"),
    ],
)
def test_what_real_models_are_guessed_to_be(tmp_path: Path, name: str, task: str, activation: str) -> None:
    for file in ("model.onnx", "tokenizer.json"):
        if (ZOO / name / file).exists():
            shutil.copy(ZOO / name / file, tmp_path)
    model = resolved(tmp_path / "model.onnx")
    assert model.card_origin.guessed
    assert (model.card.task, model.card.scores.activation) == (task, activation)
    if name == "yolox_nano":
        assert model.card.boxes is not None
        assert model.card.boxes.decoder == "yolox"
        assert len(model.card.labels) == 80


def test_the_model_itself_stays_as_it_is() -> None:
    model = formats.load(ZOO / "mnist" / "model.onnx")
    other = cards.resolve(model)
    assert model.card.task == "tensor"
    assert other.card.task == "image-classification"
    assert other.graph is model.graph


def test_metadata_survives_the_reader(tmp_path: Path) -> None:
    path = save_model(tmp_path, PICTURE, {"y": ["N", 2]}, metadata={"educe.card": image_toml("mine")})
    assert {entry.key for entry in onnx.load(path).metadata_props} == {"educe.card"}
    assert formats.load(path).graph.metadata_props["educe.card"] == image_toml("mine")
