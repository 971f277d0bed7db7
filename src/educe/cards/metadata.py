"""Cards in a model file's own metadata: Educe's, and that of Ultralytics' exporters.

Ultralytics' exporter writes `task`, `imgsz`, `names`, `stride`, `channels` and `args` as text, some of it as
Python literals; the exporters of YOLOv5 and v7 write `names` and `stride` alone.
"""

from __future__ import annotations

import ast
import re
from typing import Literal

from msgspec.structs import replace

from educe.cards import shapes
from educe.cards.file import parse_card, with_labels
from educe.cards.presets import fit_preset, read_preset
from educe.cards.source import Found
from educe.errors import CardError
from educe.limits import Limits
from educe.model import Card, CardOrigin, Model
from educe.model.card import ImageInput, ScoresOutput

EDUCE_KEY = "educe.card"
EDUCE_SOURCE = "metadata (educe)"
ULTRALYTICS_SOURCE = "metadata (ultralytics)"

_STRING = r"""'(?:[^'\\\n]|\\[^\n])*'|"(?:[^"\\\n]|\\[^\n])*\""""
_NAME = re.compile(rf"\s*(?:(\d{{1,9}})\s*:\s*)?({_STRING})\s*(?:,|$)")


def educe_metadata(model: Model, limits: Limits) -> Found | None:
    """Return the card that the file holds under ``educe.card``, as TOML text, if it does.

    Raises:
        CardError: the text is no card.
        LimitError: the text is larger than `limits.card_bytes`.
    """
    text = model.graph.metadata_props.get(EDUCE_KEY)
    if text is None:
        return None
    limits.check("card_bytes", len(text.encode()), path=model.path)
    folder = model.path.parent if model.path is not None else None
    try:
        card = with_labels(parse_card(text, model.path), folder, limits, model.path)
    except CardError as fault:
        fault.place = ": ".join(part for part in (f"metadata {EDUCE_KEY}", fault.place) if part)
        raise
    return Found(card, CardOrigin(EDUCE_SOURCE, folder=folder))


def ultralytics_metadata(model: Model, limits: Limits) -> Found | None:
    """Return the card that the metadata of Ultralytics' exporters amounts to, if there is any.

    Raises:
        CardError: the metadata is there but broken, or describes what no card can.
    """
    properties = model.graph.metadata_props
    if "names" not in properties or "stride" not in properties:
        return None
    labels = _names(properties["names"])
    task = properties.get("task", "detect")
    if task == "detect":
        card = _detector(model, labels, limits)
    elif task == "classify":
        card = _classifier(model, labels)
    else:
        raise CardError(f"no task here does what Ultralytics calls {task!r}", place="task")
    return Found(card, CardOrigin(ULTRALYTICS_SOURCE))


def _detector(model: Model, labels: tuple[str, ...], limits: Limits) -> Card:
    properties = model.graph.metadata_props
    if properties.get("end2end") == "True" or re.search(r"'nms':\s*True", properties.get("args", "")):
        raise CardError("the graph drops overlapping boxes itself, which no decoder here reads", place="args")
    card = replace(read_preset(_decoder(model, len(labels)), limits), labels=labels)
    if card.image is not None:
        card = replace(card, image=replace(card.image, size=_size(model), color=_color(model)))
    return fit_preset(card, model)


def _decoder(model: Model, num_labels: int) -> Literal["yolov5", "yolov8"]:
    """Return the decoder whose layout the first output has: [N, 4 + C, boxes] or [N, boxes, 5 + C]."""
    shape = shapes.output_shape(model, None)
    if len(model.signature.outputs) == 1 and (shape is None or len(shape) == 3):
        channels, last = (shapes.fixed(dim) for dim in shape[1:]) if shape is not None else (None, None)
        if channels == 4 + num_labels:
            return "yolov8"
        if last == 5 + num_labels:
            return "yolov5"
        if channels is None and last is None:
            return "yolov8" if "task" in model.graph.metadata_props else "yolov5"
    expected = f"one output [N,{4 + num_labels},boxes] or [N,boxes,{5 + num_labels}]"
    raise CardError(f"expected {expected}, found {model.signature}", place="names")


def _classifier(model: Model, labels: tuple[str, ...]) -> Card:
    """Return the card of a classifier: shorter side and centre crop of one size, bilinear, pixels 0..1."""
    tensor = shapes.image_tensor(model)
    size = tensor.size(default=_size(model)) if tensor is not None else _size(model)
    if size[0] != size[1]:
        raise CardError(f"expected a square picture, found {size[0]} x {size[1]}", place="imgsz")
    image = ImageInput(size=size, fit="crop", shorter_side=size[0], color=_color(model))
    scores = ScoresOutput(activation=shapes.activation(model))
    return Card(task="image-classification", labels=labels, image=image, scores=scores)


def _size(model: Model) -> tuple[int, int]:
    """Return width and height: `imgsz` gives the height first, and is absent from YOLOv5 files."""
    text = model.graph.metadata_props.get("imgsz")
    if text is None:
        return (640, 640)
    numbers = [int(number) for number in re.findall(r"\d{1,6}", text[:64])]
    if len(numbers) not in (1, 2) or 0 in numbers:
        raise CardError(f"expected [height, width], found {text[:64]!r}", place="imgsz")
    return numbers[-1], numbers[0]


def _color(model: Model) -> Literal["rgb", "gray"]:
    channels = model.graph.metadata_props.get("channels", "3")
    if channels not in ("1", "3"):
        raise CardError(f"expected 1 or 3 channels, found {channels[:64]!r}", place="channels")
    return "gray" if channels == "1" else "rgb"


def _names(text: str) -> tuple[str, ...]:
    """Read ``{0: 'person', 1: 'car'}`` or ``['person', 'car']`` without evaluating anything but strings."""
    inner = text.strip()
    names: list[str] = []
    position = 1
    while position < len(inner) - 1:
        match = _NAME.match(inner, position, len(inner) - 1)
        if match is None or match[1] not in (None, str(len(names))):
            raise CardError(
                f"expected names by index from 0, found {inner[position : position + 60]!r}", place="names"
            )
        try:
            names.append(str(ast.literal_eval(match[2])))
        except (ValueError, SyntaxError):
            raise CardError(f"expected a string, found {match[2][:60]}", place="names") from None
        position = match.end()
    if inner[:1] + inner[-1:] not in ("{}", "[]"):
        raise CardError(f"expected a dictionary or a list, found {inner[:60]!r}", place="names")
    return tuple(names)
