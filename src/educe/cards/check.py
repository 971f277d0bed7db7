"""What a card must be beyond its types: complete for its task, consistent, and fit for its model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from educe.cards import shapes
from educe.errors import CardError, nearest
from educe.limits import Limits
from educe.model import Card, Model, TensorType
from educe.model.card import AnchorGrid, AudioInput, BoxesOutput, ImageInput

MAX_ANCHORS = 10_000_000
MAX_SPAN = 2**24
MAX_VALUE = 1e30
MAX_SCALE = 1e6

_SECTIONS = {
    "image-classification": ("image",),
    "object-detection": ("image", "boxes"),
    "face-detection": ("image", "boxes"),
    "audio-classification": ("audio",),
    "voice-activity-detection": ("audio",),
    "text-classification": ("text",),
    "file-type": ("file",),
    "tabular-classification": ("table",),
    "tabular-regression": ("table",),
    "tensor": (),
}


@dataclass(frozen=True)
class _Fault:
    place: str
    cause: str
    remedy: str


def check_card(card: Card, model: Model, limits: Limits, path: Path | None = None) -> None:
    """Refuse a card that is incomplete, contradicts itself, or does not fit `model`.

    Args:
        card: The card, its label file read.
        path: The file that errors name; the model's own if absent.

    Raises:
        CardError: the error names the field, what was found, and what would be right.
        LimitError: a field asks for more memory than `limits` allow.
    """
    where = path if path is not None else model.path
    for fault in chain(_card_faults(card), _size_faults(card, limits, where), _model_faults(card, model)):
        raise CardError(fault.cause, path=where, place=fault.place, remedy=fault.remedy)


def _card_faults(card: Card) -> Iterator[_Fault]:
    for section in _SECTIONS[card.task]:
        if getattr(card, section) is None:
            yield _Fault(f"[{section}]", f"the task {card.task} needs this section", f"add [{section}]")
    yield from _not_finite(msgspec.to_builtins(card), "")
    if card.image is not None:
        yield from _image_faults(card.image)
    if card.boxes is not None:
        yield from _boxes_faults(card.boxes)
    if card.text is not None and card.text.tokenizer == "":
        yield _Fault("[text] tokenizer", "expected a file's name, found ''", 'use "tokenizer.json"')


def _not_finite(value: Any, place: str) -> Iterator[_Fault]:
    """Yield a fault for every number in `value` that is infinite or no number."""
    if isinstance(value, float) and not math.isfinite(value):
        yield _Fault(place, f"expected a finite number, found {value}", "give a finite number")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            if not isinstance(inner, str):
                yield from _not_finite(inner, f"{place}[{index}]")


def _image_faults(image: ImageInput) -> Iterator[_Fault]:
    channels = 1 if image.color == "gray" else 3
    for name, values in (("mean", image.mean), ("std", image.std)):
        if len(values) not in (1, channels):
            cause = f"expected 1 or {channels} numbers for {image.color}, found {len(values)}"
            yield _Fault(f"[image] {name}", cause, "give one for each channel, or one for all")
    if 0.0 in image.std:
        yield _Fault("[image] std", "the picture is divided by it, and it is 0", "use 1.0 for no scaling")
    if _overflows(image):
        cause = f"(range - mean) / std does not fit f32, with std = {list(image.std)}"
        yield _Fault("[image] std", cause, "use numbers between 1e-6 and 1e6")
    if image.range[0] >= image.range[1]:
        cause = f"expected the lower end first, found {list(image.range)}"
        yield _Fault("[image] range", cause, "write it as [low, high]")
    if image.shorter_side is not None and image.fit != "crop":
        cause = f"it belongs to fit = 'crop', and fit is {image.fit!r}"
        yield _Fault("[image] shorter_side", cause, 'remove it, or say fit = "crop"')
    if image.shorter_side is not None and image.shorter_side < max(image.size):
        cause = f"{image.shorter_side} is smaller than the {max(image.size)} that are cut out"
        yield _Fault("[image] shorter_side", cause, f"use {max(image.size)} or more")
    if not image.antialias and image.filter not in ("bilinear", "nearest"):
        cause = f"only bilinear and nearest can go without, and filter is {image.filter!r}"
        yield _Fault("[image] antialias", cause, "remove it, or change the filter")


def _overflows(image: ImageInput) -> bool:
    span = image.range[1] - image.range[0]
    return any(
        not (abs(end - mean) / abs(std) < MAX_VALUE and abs(span / std) < MAX_VALUE)
        for std in image.std
        for mean in image.mean
        for end in image.range
        if std != 0
    )


def _boxes_faults(boxes: BoxesOutput) -> Iterator[_Fault]:
    if boxes.decoder in ("ssd", "ultraface") and boxes.scores is None:
        cause = f"the decoder {boxes.decoder} has two outputs"
        yield _Fault("[boxes] scores", cause, "name the output with the scores")
    if boxes.decoder == "ssd" and boxes.anchors is None:
        yield _Fault("[boxes.anchors]", "the decoder ssd needs this section", "add [boxes.anchors]")
    if boxes.decoder == "yolox" and not boxes.strides:
        yield _Fault("[boxes] strides", "expected at least one stride, found none", "use [8, 16, 32]")
    if boxes.anchors is not None:
        yield from _anchor_faults(boxes.anchors)


def _anchor_faults(anchors: AnchorGrid) -> Iterator[_Fault]:
    expected = {"scales": len(anchors.maps) + int(anchors.extra_scale), "aspect_ratios": len(anchors.maps)}
    for name, count in expected.items():
        found = len(getattr(anchors, name))
        if found != count:
            cause = f"expected {count} entries for {len(anchors.maps)} maps, found {found}"
            yield _Fault(
                f"[boxes.anchors] {name}", cause, "give one for each map, with extra_scale one more scale"
            )
    numbers = {
        "scales": anchors.scales,
        "aspect_ratios": [ratio for ratios in anchors.aspect_ratios for ratio in ratios],
        "variances": anchors.variances,
    }
    for name, values in numbers.items():
        if wrong := [value for value in values if not 0 < value < MAX_SCALE]:
            cause = f"expected numbers between 0 and {MAX_SCALE:g}, found {wrong[0]}"
            yield _Fault(f"[boxes.anchors] {name}", cause, "give shares of the picture, or ratios")
    cells = sum(width * height for width, height in anchors.maps)
    most = max((len(ratios) for ratios in anchors.aspect_ratios), default=0) + int(anchors.extra_scale)
    if cells * most > MAX_ANCHORS:
        cause = f"the maps have {cells * most:,} anchors, the limit is {MAX_ANCHORS:,}"
        yield _Fault("[boxes.anchors] maps", cause, "check the sizes of the maps")


def _size_faults(card: Card, limits: Limits, path: Path | None) -> Iterator[_Fault]:
    if card.image is not None:
        limits.check("image_pixels", card.image.size[0] * card.image.size[1], path=path)
        limits.check("image_pixels", (card.image.shorter_side or 1) ** 2, path=path)
    if card.audio is not None:
        yield from _audio_faults(card.audio, limits)
    if card.file is not None:
        if card.file.padding > MAX_SPAN:
            yield _Fault(
                "[file] padding", f"expected at most {MAX_SPAN}, found {card.file.padding}", "use 256"
            )
        for name in ("begin", "end"):
            if not getattr(card.file, name) <= card.file.block <= MAX_SPAN:
                found = f"{getattr(card.file, name)} and {card.file.block}"
                cause = f"expected {name} <= block <= {MAX_SPAN}, found {found}"
                yield _Fault(f"[file] {name}", cause, "take less than a block")
    if card.text is not None and card.text.max_length > MAX_SPAN:
        cause = f"expected at most {MAX_SPAN}, found {card.text.max_length}"
        yield _Fault("[text] max_length", cause, "give the length the model was trained with")


def _audio_faults(audio: AudioInput, limits: Limits) -> Iterator[_Fault]:
    most = limits.audio_seconds * audio.sample_rate
    for name in ("window_samples", "context_samples"):
        if getattr(audio, name) > most:
            cause = f"{getattr(audio, name)} samples are more than {limits.audio_seconds} s, the limit"
            yield _Fault(f"[audio] {name}", cause, "give the window the model was trained with")
    half = audio.sample_rate / 2
    if audio.spectrum is not None and not audio.spectrum.low_hz < (audio.spectrum.high_hz or half) <= half:
        found = f"{audio.spectrum.low_hz:g} and {audio.spectrum.high_hz}"
        cause = f"expected low_hz < high_hz <= {half:g}, found {found}"
        yield _Fault("[audio.spectrum] high_hz", cause, "stay within half the sample rate")


def _model_faults(card: Card, model: Model) -> Iterator[_Fault]:
    yield from _unknown_values(_named_inputs(card), list(model.signature.inputs), "input", model)
    yield from _unknown_values(_named_outputs(card), list(model.signature.outputs), "output", model)
    yield from _constant_faults(card, model)
    if card.image is not None:
        yield from _tensor_faults(card, card.image, model)
    yield from _label_faults(card, model)


def _named_inputs(card: Card) -> Iterator[tuple[str, str | None]]:
    for section in ("image", "audio", "file", "table"):
        part = getattr(card, section)
        yield f"[{section}] input", None if part is None else part.input
    if card.text is not None:
        yield from ((f"[text] {name}", getattr(card.text, name)) for name in ("ids", "mask", "types"))
    yield from ((f"state.{name}", name) for name in card.state)
    yield from ((f"constants.{name}", name) for name in card.constants)


def _named_outputs(card: Card) -> Iterator[tuple[str, str | None]]:
    yield "[scores] output", card.scores.output
    if card.boxes is not None:
        yield "[boxes] boxes", card.boxes.boxes
        yield "[boxes] scores", card.boxes.scores
    yield from ((f"state.{name}", output) for name, output in card.state.items())


def _unknown_values(
    named: Iterable[tuple[str, str | None]], known: list[str], kind: str, model: Model
) -> Iterator[_Fault]:
    for place, name in named:
        if name is not None and name not in known:
            yield _Fault(place, f"the model {model.signature} has no {kind} {name!r}", nearest(name, known))


def _constant_faults(card: Card, model: Model) -> Iterator[_Fault]:
    for name, number in card.constants.items():
        value = model.signature.inputs.get(name)
        if not isinstance(value, TensorType):
            continue
        if not _holds(value.numpy_dtype, number):
            yield _Fault(
                f"constants.{name}", f"{number} is no value of {value}", f"give one that {value} can hold"
            )


def _holds(dtype: np.dtype, number: bool | int | float) -> bool:
    if dtype.kind == "b":
        return number in (0, 1)
    if dtype.kind == "f":
        return abs(number) <= float(np.finfo(dtype).max)
    return (
        dtype.kind in "iu" and number == int(number) and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max
    )


def _tensor_faults(card: Card, image: ImageInput, model: Model) -> Iterator[_Fault]:
    """Compare size, colour and layout with the input, where its shape is known."""
    name = shapes.content_input(model, card, image.input)
    value = model.signature.inputs.get(name) if name is not None else None
    if not isinstance(value, TensorType) or value.shape is None:
        return
    channels = 1 if image.color == "gray" else 3
    width, height = image.size
    expected = (channels, height, width) if image.layout == "nchw" else (height, width, channels)
    found = value.shape[1:]
    if len(value.shape) != 4:
        cause = f"the input {name} is {value}, which has no four dimensions"
        yield _Fault("[image] input", cause, "name another input")
    elif any(isinstance(dim, int) and dim != size for dim, size in zip(found, expected, strict=True)):
        text = ",".join(str(size) for size in expected)
        cause = f"it makes [N,{text}] ({image.layout}, {image.color}), and the input {name} is {value}"
        yield _Fault("[image] size", cause, "correct size, color or layout")


def _label_faults(card: Card, model: Model) -> Iterator[_Fault]:
    count = shapes.num_classes(model, card)
    found = len(card.labels)
    # One score of two classes is the probability of the second.
    if not found or count is None or found == count or (count == 1 and found == 2):
        return
    cause = f"{found} labels, and the model {model.signature} tells {count} classes apart"
    yield _Fault("labels", cause, "give one label for each class, in index order")
