"""Cards from the files of a Hugging Face repository: ``config.json`` and its companions.

`config.json` says what the model is for; `preprocessor_config.json`, `tokenizer.json` with
`tokenizer_config.json`, or (timm) `config.json` itself say how its input is made. They are looked for beside
the model file and one folder above, as exporters put the file into ``onnx/``. The fields
mean what they mean to the classes of the same names in the libraries transformers and timm.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from educe.cards import shapes
from educe.cards.guess import TOKENIZER, text_input
from educe.cards.huggingface_image import Preprocessor, image_input, timm_input
from educe.cards.source import Found
from educe.errors import CardError
from educe.files import read_bytes
from educe.limits import Limits
from educe.model import Card, CardOrigin, Model, TensorType
from educe.model.card import Activation, AudioInput, ScoresOutput

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

# Their position ids begin after the padding id, which costs that many of the positions.
_OFFSET_POSITIONS = (
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
_MOST_TOKENS = 2**24

ContentT = TypeVar("ContentT")


class TimmConfig(msgspec.Struct):
    """`pretrained_cfg` of timm: how the pictures of its training were cut."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    crop_mode: str | None = None


class Config(msgspec.Struct):
    """The fields of `config.json` that decide the task, the labels and the length of a text."""

    architectures: list[str] | None = None
    model_type: str | None = None
    problem_type: str | None = None
    id2label: dict[str, str] | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    pad_token_id: int | None = None
    pretrained_cfg: TimmConfig | None = None
    label_names: list[str] | None = None
    label_descriptions: dict[str, str] | None = None


class AudioPreprocessor(msgspec.Struct):
    """`preprocessor_config.json` of a model that hears."""

    sampling_rate: int
    feature_extractor_type: str | None = None
    do_normalize: bool = True


class TokenizerConfig(msgspec.Struct):
    """`tokenizer_config.json`; a model without a limit has a `model_max_length` of about 1e30."""

    model_max_length: float | None = None


class TokenizerFile(msgspec.Struct):
    """What `tokenizer.json` says about texts that are too long."""

    truncation: dict[str, Any] | None = None


def huggingface_card(model: Model, limits: Limits) -> Found | None:
    """Return the card that the files of a Hugging Face repository amount to, if there are any.

    A model that is for something that no task here does gets the card of raw tensors, and a note.

    Raises:
        CardError: the files are there but broken, or say what no card can express.
        LimitError: one of them is too large.
    """
    folder = _folder(model)
    if folder is None:
        return None
    config = _read(folder / CONFIG, Config, limits)
    if config.pretrained_cfg is not None:
        return _found(_timm_card(model, config, config.pretrained_cfg), folder, f"{CONFIG} (timm)")
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForImageClassification"):
        return _found(_image_card(model, config, folder, limits), folder, f"{CONFIG} + {PREPROCESSOR}")
    if architecture.endswith("ForSequenceClassification"):
        return _found(_text_card(model, config, folder, limits), folder, f"{CONFIG} + {TOKENIZER}")
    if architecture.endswith("ForAudioClassification"):
        return _found(_audio_card(model, config, folder, limits), folder, f"{CONFIG} + {PREPROCESSOR}")
    if not architecture:
        return None
    note = (
        f"{CONFIG} says that the model is a {architecture}, which no task here answers for: it gives tensors"
    )
    return Found(Card(task="tensor"), CardOrigin(CONFIG), folder / CONFIG, note)


def _found(card: Card, folder: Path, source: str) -> Found:
    return Found(card, CardOrigin(source, folder=folder), folder / CONFIG)


def _folder(model: Model) -> Path | None:
    if model.path is None:
        return None
    beside = model.path.parent
    return next((folder for folder in (beside, beside / "..") if (folder / CONFIG).is_file()), None)


def _read(path: Path, kind: type[ContentT], limits: Limits, limit: str = "card_bytes") -> ContentT:
    content = read_bytes(path, limits, limit, error=CardError)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise CardError(f"is not what was expected: {fault}", path=path) from None
    except RecursionError:
        raise CardError("values are nested too deeply", path=path) from None


def _timm_card(model: Model, config: Config, timm: TimmConfig) -> Card:
    tensor = shapes.image_tensor(model)
    _, height, width = timm.input_size
    size = tensor.size(default=(width, height)) if tensor is not None else (width, height)
    image = timm_input(
        size, timm.crop_pct, timm.crop_mode or "center", timm.interpolation, timm.mean, timm.std
    )
    names = config.label_names or []
    labels = tuple((config.label_descriptions or {}).get(name, name) for name in names)
    scores = ScoresOutput(activation=shapes.activation(model))
    return Card(task="image-classification", labels=labels, image=image, scores=scores)


def _image_card(model: Model, config: Config, folder: Path, limits: Limits) -> Card:
    path = folder / PREPROCESSOR
    fields = _read(path, Preprocessor, limits)
    image = image_input(fields, _read_flags(path, limits), path)
    return Card(
        task="image-classification", labels=_labels(config), image=image, scores=_scores(model, config)
    )


def _read_flags(path: Path, limits: Limits) -> set[str]:
    """Return the names of all ``do_`` fields that are true."""
    table = _read(path, dict[str, Any], limits)
    return {key for key, value in table.items() if key.startswith("do_") and value is True}


def _text_card(model: Model, config: Config, folder: Path, limits: Limits) -> Card:
    tokenizer = _read(folder / TOKENIZER, TokenizerFile, limits, "text_bytes")
    text = text_input(model, _max_length(config, folder, limits))
    if text is None:
        raise CardError(f"no tokenizer gives the inputs of {model.signature}", path=folder / CONFIG)
    too_long: Literal["error", "truncate"] = "truncate" if tokenizer.truncation is not None else "error"
    text = msgspec.structs.replace(text, too_long=too_long)
    return Card(task="text-classification", labels=_labels(config), text=text, scores=_scores(model, config))


def _max_length(config: Config, folder: Path, limits: Limits) -> int:
    """Return the most tokens that both the tokenizer and the model's positions allow."""
    bounds: list[float] = []
    if (folder / TOKENIZER_CONFIG).is_file():
        bounds.append(_read(folder / TOKENIZER_CONFIG, TokenizerConfig, limits).model_max_length or math.inf)
    positions = config.max_position_embeddings or config.n_positions
    if positions is not None:
        offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
        bounds.append(positions - offset)
    length = min(bounds, default=math.inf)
    if not 1 <= length <= _MOST_TOKENS:
        raise CardError("nothing says how many tokens the model takes", path=folder / CONFIG)
    return int(length)


def _audio_card(model: Model, config: Config, folder: Path, limits: Limits) -> Card:
    path = folder / PREPROCESSOR
    fields = _read(path, AudioPreprocessor, limits)
    if fields.feature_extractor_type != "Wav2Vec2FeatureExtractor":
        raise CardError(f"the features of {fields.feature_extractor_type} are not known here", path=path)
    if fields.do_normalize:
        raise CardError("no card can say do_normalize: zero mean and unit variance", path=path)
    value = next(iter(model.signature.inputs.values()))
    shape = value.shape if isinstance(value, TensorType) else None
    window = shapes.fixed(shape[1]) if shape is not None and len(shape) == 2 else None
    if len(model.signature.inputs) != 1 or window is None:
        raise CardError("nothing says how many samples the model takes at once", path=path)
    if fields.sampling_rate < 1:
        raise CardError(f"expected a rate of 1 or more, found {fields.sampling_rate}", path=path)
    audio = AudioInput(sample_rate=fields.sampling_rate, window_samples=window)
    return Card(
        task="audio-classification", labels=_labels(config), audio=audio, scores=_scores(model, config)
    )


def _labels(config: Config) -> tuple[str, ...]:
    names = config.id2label or {}
    if set(names) != {str(index) for index in range(len(names))}:
        raise CardError("expected names by index from 0", place="id2label")
    return tuple(names[str(index)] for index in range(len(names)))


def _scores(model: Model, config: Config) -> ScoresOutput:
    """Return the activation of the problem type, or none where the graph itself ends in one."""
    if config.problem_type == "regression":
        raise CardError("the model predicts a number, not a class", place="problem_type")
    single = config.problem_type != "multi_label_classification" and len(config.id2label or {}) != 1
    outputs = list(model.signature.outputs)
    output = "logits" if "logits" in outputs else outputs[0]
    activation: Activation = shapes.activation(model, output)
    return ScoresOutput(
        output=output, activation="sigmoid" if activation == "softmax" and not single else activation
    )
