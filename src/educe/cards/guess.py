"""A card guessed from the signature, for a model that comes with none."""

from __future__ import annotations

from msgspec.structs import replace

from educe.cards import shapes
from educe.cards.presets import fit_preset, read_preset
from educe.limits import Limits
from educe.model import Card, Model, TensorType
from educe.model.card import TENSOR_CARD, ImageInput, ScoresOutput, TextInput

DEFAULT_SIZE = (224, 224)
DEFAULT_LENGTH = 512
TOKENIZER = "tokenizer.json"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_SMALLEST_SIDE = 16
_CROP_SHARE = 224 / 256
_ANCHORS_OF_YOLOV5 = 3


def guess_card(model: Model, limits: Limits) -> Card:
    """Return the card that the names and shapes of inputs and outputs suggest, or the card of raw tensors.

    The rules, of which the first that applies decides:

    1. Inputs ``input``, ``state`` [2, ?, 128] and ``sr``: voice activity, as Silero VAD.
    2. One input of i32[N, 2048] called ``bytes`` and an output [N, C]: file types, as Magika, without labels.
    3. ``input_ids``, an output [N, C] and a ``tokenizer.json`` beside the file: text classification.
    4. One picture input of 16 pixels or more and one output [N, C] of two classes or more: image
       classification.
    5. One picture input of known size and one output of rank 3 whose length fits the grid cells of strides
       8, 16 and 32: object detection (see `_detection`).
    """
    if _is_silero(model):
        return fit_preset(read_preset("silero-vad", limits), model)
    if _is_magika(model):
        return fit_preset(read_preset("magika", limits), model)
    if len(model.signature.outputs) != 1:
        return TENSOR_CARD
    return _text(model) or _image(model) or _detection(model, limits) or TENSOR_CARD


def text_input(model: Model, max_length: int) -> TextInput | None:
    """Return how the inputs take token ids, or None if some are not of the kind that tokenizers give.

    Args:
        max_length: Used where the signature does not fix the length.
    """
    inputs = model.signature.inputs
    ids = inputs.get("input_ids")
    if not isinstance(ids, TensorType) or any(name not in TEXT_INPUTS for name in inputs):
        return None
    length = shapes.fixed(ids.shape[1]) if ids.shape is not None and len(ids.shape) == 2 else None
    return TextInput(
        max_length=length or max_length,
        pad="max_length" if length else "longest",
        mask="attention_mask" if "attention_mask" in inputs else None,
        types="token_type_ids" if "token_type_ids" in inputs else None,
    )


def _is_silero(model: Model) -> bool:
    state = model.signature.inputs.get("state")
    shape = state.shape if isinstance(state, TensorType) else None
    names = set(model.signature.inputs) == {"input", "state", "sr"} and "stateN" in model.signature.outputs
    return names and shape is not None and len(shape) == 3 and shape[0] == 2 and shape[2] == 128


def _is_magika(model: Model) -> bool:
    value = model.signature.inputs.get("bytes")
    if len(model.signature.inputs) != 1 or not isinstance(value, TensorType) or value.shape is None:
        return False
    return value.dtype == "i32" and value.shape[1:] == (2048,) and len(model.signature.outputs) == 1


def _text(model: Model) -> Card | None:
    text = text_input(model, DEFAULT_LENGTH)
    has_tokenizer = model.path is not None and (model.path.parent / TOKENIZER).is_file()
    if text is None or not has_tokenizer or not _has_classes(model):
        return None
    return Card(
        task="text-classification", text=text, scores=ScoresOutput(activation=shapes.activation(model))
    )


def _image(model: Model) -> Card | None:
    tensor = shapes.image_tensor(model)
    if tensor is None or not _has_classes(model):
        return None
    size = tensor.size(default=DEFAULT_SIZE)
    if min(size) < _SMALLEST_SIDE:
        return None
    image = ImageInput(
        size=size,
        color="gray" if tensor.channels == 1 else "rgb",
        layout=tensor.layout,
        fit="crop",
        shorter_side=round(max(size) / _CROP_SHARE),
    )
    if tensor.dtype in ("u8", "i8"):
        offset = 0.0 if tensor.dtype == "u8" else 128.0
        image = replace(image, range=(-offset, 255.0 - offset))
    elif tensor.channels == 3:
        image = replace(image, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    scores = ScoresOutput(activation=shapes.activation(model))
    return Card(task="image-classification", image=image, scores=scores)


def _detection(model: Model, limits: Limits) -> Card | None:
    """Return the card of a YOLO.

    With `cells` grid cells: [1, 4 + C, cells] is YOLOv8; [1, 3 * cells, 5 + C] is YOLOv5; [1, cells, 5 + C]
    is YOLOX, whose boxes are decoded in the graph already if it holds an Exp, and then are laid out as those
    of YOLOv5.
    """
    tensor = shapes.image_tensor(model)
    shape = shapes.output_shape(model, None)
    if tensor is None or tensor.channels != 3 or shape is None or len(shape) != 3:
        return None
    if tensor.height is None or tensor.width is None or not all(shapes.fixed(dim) for dim in shape[1:]):
        return None
    cells = shapes.num_cells(tensor.height, tensor.width)
    rows, columns = int(shape[1] or 0), int(shape[2] or 0)
    if columns == cells and 4 < rows < columns:
        return fit_preset(read_preset("yolov8", limits), model)
    if rows == _ANCHORS_OF_YOLOV5 * cells and 5 < columns < rows:
        return fit_preset(read_preset("yolov5", limits), model)
    if rows != cells or not 5 < columns < rows:
        return None
    card = fit_preset(read_preset("yolox", limits), model)
    if "Exp" in model.operators and card.boxes is not None:
        card = replace(card, boxes=replace(card.boxes, decoder="yolov5"))
    return card


def _has_classes(model: Model) -> bool:
    """Return whether the output is [N, C] with two classes or more, as far as the shape says."""
    shape = shapes.output_shape(model, None)
    value = next(iter(model.signature.outputs.values()))
    if shape is None or not isinstance(value, TensorType) or value.numpy_dtype.kind not in "fV":
        return False
    count = shapes.scores_count(shape)
    return count > 1 if count is not None else len(shape) == 2 and not isinstance(shape[1], int)
