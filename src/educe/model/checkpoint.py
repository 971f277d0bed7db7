"""`Checkpoint`: what the files of a language model hold, whatever their format."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from educe.model.digest import Digest
from educe.model.encodings import ENCODINGS


@dataclass(frozen=True, eq=False)
class Weight:
    """One trained array, as its file writes it.

    Attributes:
        name: The parameter's name in Hugging Face's library.
        shape: Its sizes; rows lie one after the other, the last dimension is contiguous.
        encoding: How its numbers are written; a key of `ENCODINGS`.
        data: Its bytes, u8[n], mapped or owned; exactly as many as shape and encoding need. Never written.
        scales: What each element of a row is multiplied by, f32[shape[0]]; None where there is none.
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    data: np.ndarray
    scales: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.data.dtype == np.uint8
        assert self.data.shape == (size_in_bytes(self.shape, self.encoding),), self.name

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def array(self) -> np.ndarray:
        """Return all elements as f32, aligned; a read-only view of the file where it holds just that."""
        values: np.ndarray = np.require(ENCODINGS[self.encoding].decode(self.data), requirements="A")
        if self.scales is not None:
            values = values.reshape(len(self.scales), -1) * self.scales[:, None]
        return values.reshape(self.shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to before `stop` of the first dimension, as `array` does all."""
        return self.cut(start, stop).array()

    def cut(self, start: int, stop: int, name: str = "") -> Weight:
        """Return the rows from `start` to before `stop` as a weight over the same memory."""
        row_bytes = size_in_bytes((1, *self.shape[1:]), self.encoding)
        return Weight(
            name or self.name,
            (stop - start, *self.shape[1:]),
            self.encoding,
            self.data[start * row_bytes : stop * row_bytes],
            None if self.scales is None else self.scales[start:stop],
        )

    def taken(self, order: np.ndarray) -> Weight:
        """Return a copy whose row i is this weight's row ``order[i]``, each as it is written."""
        rows = self.data.reshape(self.shape[0], -1)
        scales = None if self.scales is None else self.scales[order]
        shape = (len(order), *self.shape[1:])
        return Weight(self.name, shape, self.encoding, rows[order].reshape(-1), scales)

    def plain(self) -> Weight:
        """Return this weight, as f32 where its numbers are written in blocks or with scales."""
        if ENCODINGS[self.encoding].block_elements == 1 and self.scales is None:
            return self
        return Weight(self.name, self.shape, "F32", self.array().reshape(-1).view(np.uint8))

    def transposed(self) -> Weight:
        """Return a plain copy of a matrix with rows and columns exchanged."""
        (rows, columns), plain = self.shape, self.plain()
        data = np.ascontiguousarray(plain.data.reshape(rows, columns, -1).swapaxes(0, 1))
        return Weight(self.name, (columns, rows), plain.encoding, data.reshape(-1))

    def renamed(self, name: str) -> Weight:
        """Return this weight under another name, over the same memory."""
        return dataclasses.replace(self, name=name)


def size_in_bytes(shape: Sequence[int], encoding: str) -> int:
    """Return how many bytes a weight takes.

    Raises:
        ValueError: its rows are no whole number of blocks.
    """
    known = ENCODINGS[encoding]
    row = shape[-1] if shape else 1
    if row % known.block_elements:
        raise ValueError(f"rows of {row:,} elements, where {encoding} has blocks of {known.block_elements}")
    return math.prod(shape) // known.block_elements * known.block_bytes


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tables, where a format keeps them so.

    Attributes:
        model: How text is cut: ``llama`` (SentencePiece, pairs merged by score), ``gpt2`` (bytes, pairs
            merged by rank), ``bert`` (word pieces), ``t5`` (SentencePiece, the likeliest cut), ``words`` (the
            caller cuts), ``characters`` (each is a token).
        tokens: The token of each id.
        scores: The score of each id; empty where the model needs none.
        types: GGUF's kind of each id (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte);
            empty where the file does not say.
        merges: Pairs of tokens with a space between, best first.
        special: The ids of ``bos``, ``eos``, ``unk``, ``pad`` and others of that kind.
        options: What else the format says of cutting, under the format's own names.
    """

    model: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...] = ()
    types: tuple[int, ...] = ()
    merges: tuple[str, ...] = ()
    special: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerFiles:
    """The raw material of a tokenizer, not yet understood.

    Attributes:
        files: The content of each tokenizer file of a folder, by its name: ``tokenizer.json``,
            ``tokenizer_config.json``, ``vocab.json``, ``merges.txt``, ``tokenizer.model``...
        source: The tables, where the format has tables; for translation, those of the language read.
        target: The tables of the language written, if it has its own.
        chat_template: The Jinja text that makes one prompt of a conversation.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    source: Vocabulary | None = None
    target: Vocabulary | None = None
    chat_template: str | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the files of a language model hold, not yet a graph. It is never modified.

    Attributes:
        model_type: Hugging Face's name of the architecture, such as ``llama``.
        config: The fields of Hugging Face's config.json.
        weights: The weights by their names in Hugging Face's library; tied ones stand there once.
        tokenizer: The raw material of its tokenizer, if the files have one.
        generation: The fields of Hugging Face's generation_config.json.
        path: The file or folder it came from.
        content: The bytes of all its files in order of their names, of which the digest is made.
        notes: What was noticed while loading that a user should know.
        stamps: What tells the weights' files from any others without reading them, see `educe.files.stamp`;
            empty if the weights are not just what these files hold.
    """

    model_type: str
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    tokenizer: TokenizerFiles | None
    generation: Mapping[str, Any]
    path: Path
    content: Sequence[bytes | memoryview]
    notes: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> Digest:
        """The hash of `content`, computed from the first time on that it is asked for."""
        return Digest(self.content)

    @property
    def num_parameters(self) -> int:
        """Number of elements in all weights."""
        return sum(weight.num_elements for weight in self.weights.values())

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(memoryview(part).nbytes for part in self.content)

    def __repr__(self) -> str:
        return f"<Checkpoint {self.model_type} {len(self.weights)} weights {self.path}>"
