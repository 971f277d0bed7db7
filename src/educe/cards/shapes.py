"""What a signature says about pictures, classes and grids: the facts that every source of cards needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from educe.model import Card, Dim, Model, TensorType
from educe.model.card import Activation, BoxesOutput

PICTURE_TYPES = ("f32", "f16", "f64", "bf16", "u8", "i8")
GRID_STRIDES = (8, 16, 32)

_NORMALIZED = ("Softmax", "Sigmoid", "QLinearSoftmax", "QLinearSigmoid")
_SHAPE_ONLY = (
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "DequantizeLinear",
    "QuantizeLinear",
)
_MAX_STEPS = 16


@dataclass(frozen=True)
class ImageTensor:
    """An input of rank 4 that can hold pictures.

    Attributes:
        name: The graph input.
        dtype: Its element type.
        layout: Order of the dimensions.
        channels: 1 or 3.
        height: Height in pixels, if it is fixed.
        width: Width in pixels, if it is fixed.
    """

    name: str
    dtype: str
    layout: Literal["nchw", "nhwc"]
    channels: int
    height: int | None
    width: int | None

    def size(self, default: tuple[int, int]) -> tuple[int, int]:
        """Return width and height, taking from `default` what is not fixed."""
        return self.width or default[0], self.height or default[1]


def content_input(model: Model, card: Card, name: str | None) -> str | None:
    """Return `name`, or the only input that is no state and no constant, or None if there are several."""
    if name is not None:
        return name
    free = [key for key in model.signature.inputs if key not in card.state and key not in card.constants]
    return free[0] if len(free) == 1 else None


def image_tensor(model: Model, name: str | None = None) -> ImageTensor | None:
    """Return the picture input called `name`, or the model's only input, if it can hold pictures.

    An input whose second dimension is 1 or 3 has its channels first; else its last must be.
    """
    names = [name] if name is not None else list(model.signature.inputs)
    value = model.signature.inputs.get(names[0]) if len(names) == 1 else None
    if not isinstance(value, TensorType) or value.dtype not in PICTURE_TYPES or len(value.shape or ()) != 4:
        return None
    _, second, third, last = value.shape or (None,) * 4
    if second in (1, 3):
        return ImageTensor(names[0], value.dtype, "nchw", int(second), fixed(third), fixed(last))
    if last in (1, 3):
        return ImageTensor(names[0], value.dtype, "nhwc", int(last), fixed(second), fixed(third))
    return None


def fixed(dim: Dim) -> int | None:
    """Return a dimension that is fixed and not empty, else None."""
    return dim if isinstance(dim, int) and dim > 0 else None


def output_shape(model: Model, name: str | None, card: Card | None = None) -> tuple[Dim, ...] | None:
    """Return the shape of the output called `name`, or of the first one that is no state."""
    states = set(card.state.values()) if card is not None else set()
    names = [name] if name is not None else [key for key in model.signature.outputs if key not in states]
    value = model.signature.outputs.get(names[0]) if names else None
    return value.shape if isinstance(value, TensorType) else None


def scores_count(shape: tuple[Dim, ...] | None) -> int | None:
    """Return the number of classes of an output ``[N, C]`` or ``[N, C, 1, 1]``, if it is fixed."""
    if shape is None or len(shape) < 2 or any(dim != 1 for dim in shape[2:]):
        return None
    return fixed(shape[1])


def boxes_count(model: Model, boxes: BoxesOutput) -> int | None:
    """Return the number of classes that the outputs of a detector have room for, background left out."""
    if boxes.decoder in ("ssd", "ultraface"):
        shape = output_shape(model, boxes.scores) if boxes.scores is not None else None
        classes = fixed(shape[-1]) if shape else None
        return None if classes is None else classes - int(boxes.background)
    shape = output_shape(model, boxes.boxes)
    axis, fields = {"yolox": (2, 5), "yolov5": (2, 5), "yolov8": (1, 4), "fastestdet": (1, 5)}[boxes.decoder]
    rank = 4 if boxes.decoder == "fastestdet" else 3
    length = fixed(shape[axis]) if shape is not None and len(shape) == rank else None
    return None if length is None else length - fields


def num_classes(model: Model, card: Card) -> int | None:
    """Return how many classes the model tells apart, or None if the signature does not say."""
    if card.task in ("object-detection", "face-detection"):
        return boxes_count(model, card.boxes) if card.boxes is not None else None
    if card.task in ("image-classification", "audio-classification", "text-classification", "file-type"):
        return scores_count(output_shape(model, card.scores.output, card))
    return None


def num_cells(height: int, width: int) -> int:
    """Return how many cells the grids of strides 8, 16 and 32 have over a picture of this size."""
    return sum((height // stride) * (width // stride) for stride in GRID_STRIDES)


def activation(model: Model, output: str | None = None) -> Activation:
    """Return ``none`` if the graph itself ends in a Softmax or Sigmoid for `output`, else ``softmax``.

    Operators that only change shape or type are looked through.
    """
    names = [value.name for value in model.graph.graph.outputs]
    wanted = output if output is not None else names[0]
    value = next((value for value in model.graph.graph.outputs if value.name == wanted), None)
    for _ in range(_MAX_STEPS):
        node = value.producer() if value is not None else None
        if node is None:
            break
        if node.op_type in _NORMALIZED:
            return "none"
        if node.op_type not in _SHAPE_ONLY or not node.inputs:
            break
        value = node.inputs[0]
    return "softmax"
