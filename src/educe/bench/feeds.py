"""Random inputs that fit a model: its signature says the types, its card the sizes and the ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from educe.errors import InputError, OptionError
from educe.model import Card, Model, OptionalType, SequenceType, TensorType, ValueType
from educe.model.card import SpectrumInput
from educe.model.signature import Signature

DEFAULT_SIZE = 16
"""Taken for a size that neither the signature nor the card tells."""

_MAX_TOKENS = 128
_SMALL_INTEGERS = 10
_WORDS = np.array(["", "a", "word", "two words", "zwölf"], object)


def random_feeds(
    model: Model, batch: int = 1, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return an array for every input of `model`, the same ones for the same seed.

    Inputs that carry state are zeros, and constants have the card's value. The first unknown size of the
    first input is the batch. Pictures lie in the card's range, sounds in -1..1, and integers are small and
    not negative, so that they are valid indices of most tables.

    Args:
        batch: How many items one run has.
        sizes: Sizes of dimensions by their names; the others are guessed.

    Raises:
        InputError: an input's rank is unknown, or its kind has no random values.
    """
    rng = np.random.default_rng(seed)
    content = _content_input(model)
    known = _Sizes(model.card, content, batch, sizes or {})
    feeds: dict[str, Any] = {}
    # The content comes first: it tells which named size is the batch.
    for name in sorted(model.signature.inputs, key=lambda name: name != content):
        value = model.signature.inputs[name]
        try:
            feeds[name] = _random(rng, name, value, model.card, known, name == content)
        except MemoryError as fault:
            remedy = "take a smaller batch, or smaller sizes"
            raise InputError(f"not enough memory: {fault}", place=f"input {name!r}", remedy=remedy) from None
    return {name: feeds[name] for name in model.signature.inputs}


def check_batch(model: Model, batch: int) -> None:
    """Raise `OptionError` if the model fixes another batch than `batch`."""
    value = model.signature.inputs.get(_content_input(model) or "")
    fixed = value.shape[0] if isinstance(value, TensorType) and value.shape else None
    if batch > 1 and isinstance(fixed, int) and fixed != batch:
        raise OptionError(
            f"batch={batch}, but the model takes exactly {fixed} at once",
            remedy="leave the batch out, or export the model with a dynamic batch",
        )


def with_sizes_of(model: Model, feeds: Mapping[str, Any]) -> Model:
    """Return a model that takes tensors of the sizes of `feeds` only, which some engines compile better."""
    inputs: dict[str, ValueType] = {}
    named: dict[str, int] = {}
    for name, value in model.signature.inputs.items():
        inputs[name] = value
        if isinstance(value, TensorType):
            shape = np.shape(feeds[name])
            inputs[name] = TensorType(value.dtype, shape)
            named |= {
                dim: n for dim, n in zip(value.shape or (), shape, strict=False) if isinstance(dim, str)
            }
    graph = model.graph.clone()
    for each in graph.graph.inputs:
        if isinstance(inputs[str(each.name)], TensorType):
            each.shape = ir.Shape(np.shape(feeds[str(each.name)]))
    for each in (output for node in graph.graph for output in node.outputs):
        if each.shape is not None:
            dims = (dim if isinstance(dim, int) else named.get(str(dim.value), dim) for dim in each.shape)
            each.shape = ir.Shape(dims)
    signature = Signature(inputs, dict(model.signature.outputs))
    return dataclasses.replace(model, graph=graph, signature=signature)


class _Sizes:
    """The size of every dimension; one name has one size throughout."""

    def __init__(self, card: Card, content: str | None, batch: int, named: Mapping[str, int]) -> None:
        self._named = dict(named)
        self._batch = batch
        self._content = content
        self._hints = _content_sizes(card)

    def shape(self, name: str, value: TensorType) -> tuple[int, ...]:
        if value.shape is None:
            raise InputError(
                f"the rank of {value} is unknown", place=f"input {name!r}", remedy="give the inputs"
            )
        rank = len(value.shape)
        shape = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                shape.append(dim)
                continue
            size = self._guess(name, axis, rank)
            shape.append(self._named.setdefault(dim, size) if dim is not None else size)
        return tuple(shape)

    def _guess(self, name: str, axis: int, rank: int) -> int:
        if axis == 0:
            return self._batch
        hint = self._hints.get(axis - rank) if name == self._content else None
        return hint or DEFAULT_SIZE


def _content_input(model: Model) -> str | None:
    """Return the input that takes what the task is about, if there is one."""
    card = model.card
    for section in (card.image, card.audio, card.file, card.table):
        if section is not None and section.input is not None:
            return section.input
    if card.text is not None:
        return card.text.ids
    inputs = model.signature.inputs
    free = [name for name in inputs if name not in card.state and name not in card.constants]
    return free[0] if free else None


def _content_sizes(card: Card) -> dict[int, int]:
    """Return the sizes that the card tells of the content, by axis from the end."""
    if card.image is not None:
        width, height = card.image.size
        channels = 1 if card.image.color == "gray" else 3
        nchw = card.image.layout == "nchw"
        return {-3: channels, -2: height, -1: width} if nchw else {-3: height, -2: width, -1: channels}
    if card.audio is not None:
        samples = card.audio.window_samples
        spectrum = card.audio.spectrum
        return {-1: samples + card.audio.context_samples} if spectrum is None else _frames(samples, spectrum)
    if card.text is not None:
        return {-1: min(card.text.max_length, _MAX_TOKENS)}
    if card.file is not None:
        return {-1: card.file.begin + card.file.end}
    return {-1: len(card.table.columns)} if card.table is not None else {}


def _frames(samples: int, spectrum: SpectrumInput) -> dict[int, int]:
    frames = 1 + max(0, samples - spectrum.frame_samples) // spectrum.hop_samples
    return {-2: frames, -1: spectrum.coefficients if spectrum.kind == "mfcc" else spectrum.mel_bins}


def _random(
    rng: np.random.Generator, name: str, value: ValueType, card: Card, sizes: _Sizes, is_content: bool
) -> Any:
    if isinstance(value, OptionalType):
        return _random(rng, name, value.element, card, sizes, is_content)
    if isinstance(value, SequenceType):
        return [_random(rng, name, value.element, card, sizes, is_content)]
    if not isinstance(value, TensorType):
        raise InputError(f"{value} has no random values", place=f"input {name!r}", remedy="give the inputs")
    shape, dtype = sizes.shape(name, value), value.numpy_dtype
    if name in card.state:
        return np.zeros(shape, dtype)
    if name in card.constants:
        return np.full(shape, card.constants[name], dtype)
    if card.text is not None and name == card.text.mask:
        return np.ones(shape, dtype)
    return _values(rng, shape, dtype, card if is_content else None)


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, card: Card | None
) -> np.ndarray:
    if dtype.kind == "O":
        return _WORDS[rng.integers(0, len(_WORDS), shape)]
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if "int" in dtype.name:
        bytes_expected = card is not None and (card.image is not None or card.file is not None)
        high = 256 if bytes_expected and np.can_cast(np.uint8, dtype) else _SMALL_INTEGERS
        return rng.integers(0, min(high, _largest(dtype) + 1), shape).astype(dtype)
    if card is not None and card.image is not None:
        return rng.uniform(*card.image.range, shape).astype(dtype)
    if card is not None and card.audio is not None and card.audio.spectrum is None:
        return rng.uniform(-1, 1, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _largest(dtype: np.dtype) -> int:
    # The types of ml_dtypes that are narrower than a byte are named for their bits.
    bits = int(dtype.name.removeprefix("u").removeprefix("int"))
    return int(2 ** (bits if dtype.name.startswith("u") else bits - 1) - 1)
