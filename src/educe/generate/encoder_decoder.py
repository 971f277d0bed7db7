"""`EncoderDecoder`: a model that reads whole sources, and writes a text about each, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from educe.errors import UnsupportedModelError, nearest
from educe.generate import packing
from educe.generate.architectures.bart import bart, m2m_100, marian, mbart
from educe.generate.architectures.encoder_decoder import Build, SourceGraph, TargetGraph
from educe.generate.architectures.t5 import t5
from educe.generate.architectures.whisper import whisper
from educe.generate.blocks import Copy
from educe.generate.cache import CacheFormat, block_bytes, copy_blocks, pools
from educe.generate.compiled import compiled
from educe.generate.configuration import Configuration
from educe.generate.packing import program_size
from educe.generate.parameters import Progress
from educe.generate.step import Slice
from educe.model.checkpoint import Checkpoint

ENCODER_DECODERS: dict[str, Build] = {
    "bart": bart,
    "m2m_100": m2m_100,
    "marian": marian,
    "mbart": mbart,
    "mt5": t5,
    "t5": t5,
    "whisper": whisper,
}
"""What builds the graphs of each model with an encoder and a decoder, as Hugging Face names them."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a text is about, as the encoder has read it.

    Attributes:
        length: How many rows the encoder made of it.
        blocks: Where they lie.
    """

    length: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(Slice):
    """Some tokens of a text, to be run in one step.

    Attributes:
        source: What the text is about.
    """

    source: Source


class EncoderDecoder:
    """A model with an encoder and a decoder, ready to run when it has a cache. One thread at a time.

    Args:
        checkpoint: The model.
        max_length: Most tokens of a source and of a text, where the model has no bound of its own.
        max_sequences: Most sources, and most texts, in a step.
        block_size: Tokens of a block of the cache.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        threads: Threads of a step; the machine's cores if absent.
        progress: What is told of the packing of weights.

    Attributes:
        max_source: Most tokens of a source.
        max_target: Most tokens of a text.

    Raises:
        ModelFileError: weights are missing or misshapen, or a field of the configuration cannot be.
        UnsupportedModelError: the architecture or a part of it is not known, or weights are left over.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_length: int = 1024,
        max_sequences: int = 32,
        block_size: int = 32,
        precision: str = "f32",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if checkpoint.model_type not in ENCODER_DECODERS:
            raise UnsupportedModelError(
                f"models of the type {checkpoint.model_type!r} do not read one text and write another",
                path=checkpoint.path,
                remedy=nearest(checkpoint.model_type, ENCODER_DECODERS),
            )
        build = ENCODER_DECODERS[checkpoint.model_type]
        self._cache = cache = CacheFormat("f32", block_size)
        source = SourceGraph(checkpoint, cache, precision, progress=progress)
        target = TargetGraph(checkpoint, cache, precision, weights=source.weights, progress=progress)
        graphs = build(source, target, Configuration(checkpoint.config, checkpoint.path))
        self.block_size, self.max_sequences = block_size, max_sequences
        self.max_source = graphs.max_source or max_length
        self.max_target = graphs.max_target or max_length
        self._encoder = compiled(graphs.encoder, checkpoint, threads)
        self._decoder = compiled(graphs.decoder, checkpoint, threads)
        self._own, self._kept = cache.shapes(source.caches), cache.shapes(source.kept, "cache.cross")
        self._written = cache.shapes(target.caches)
        self._encoder_pools: dict[str, np.ndarray] = {}
        self._cross_pools: dict[str, np.ndarray] = {}
        self._decoder_pools: dict[str, np.ndarray] = {}

    @property
    def source_block_bytes(self) -> int:
        """Memory of a block of sources, in all layers."""
        return block_bytes(self._own, self._cache.dtype) + block_bytes(self._kept, self._cache.dtype)

    @property
    def target_block_bytes(self) -> int:
        """Memory of a block of texts, in all layers."""
        return block_bytes(self._written, self._cache.dtype)

    def allocate(self, num_source_blocks: int, num_target_blocks: int) -> None:
        """Give the caches of sources and of texts so many blocks; one takes memory when it is first used."""
        dtype = self._cache.dtype
        self._encoder_pools = pools(self._own, num_source_blocks, dtype)
        self._cross_pools = pools(self._kept, num_source_blocks, dtype)
        self._decoder_pools = pools(self._written, num_target_blocks, dtype)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks so many tokens take."""
        return -(-num_tokens // self.block_size)

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of texts, from and to, in their order."""
        copy_blocks(self._decoder_pools, copies)

    def encode(self, tokens: Sequence[Sequence[int]], blocks: Sequence[Sequence[int]]) -> np.ndarray:
        """Read sources, of whose rows the decoder's layers keep what they need in the blocks of each.

        What is kept of a source does not depend on the others.

        Returns:
            The rows of all tokens, one source after the other, f32[tokens, features].
        """
        size = program_size(sum(map(len, tokens)))
        feeds = self._places([len(each) for each in tokens], blocks, size)
        return self._read({**feeds, "tokens": packing.filled(tokens, size)}, sum(map(len, tokens)))

    def hear(self, features: np.ndarray, blocks: Sequence[Sequence[int]]) -> np.ndarray:
        """Read sounds, f32[sounds, mel bins, frames], as `encode` tokens; each has `max_source` rows."""
        count = len(features)
        size = count * self.max_source
        feeds = self._places([self.max_source] * count, blocks, size)
        return self._read({**feeds, "features": np.ascontiguousarray(features, np.float32)}, size)

    def _places(
        self, counts: Sequence[int], blocks: Sequence[Sequence[int]], size: int
    ) -> dict[str, np.ndarray]:
        most = self.max_sequences
        slices = [Slice(range(count), 0, own) for count, own in zip(counts, blocks, strict=True)]
        slots = packing.slots(slices, size, self.block_size)
        return {
            "positions": packing.filled([part.positions for part in slices], size),
            "slots": slots,
            "slots.cross": slots,
            "table": packing.table(blocks, most, self.blocks_for(self.max_source)),
            "items": packing.items(counts, counts, size, 1, most),
        }

    def _read(self, feeds: dict[str, np.ndarray], count: int) -> np.ndarray:
        used = self._encoder.signature.inputs
        feeds = {name: array for name, array in feeds.items() if name in used}
        states: np.ndarray = self._encoder.run({**feeds, **self._encoder_pools, **self._cross_pools})[
            "states"
        ]
        return states[:count]

    def decode(self, targets: Sequence[Target]) -> np.ndarray:
        """Run tokens of texts, and return the logits after the last of each, f32[texts, vocabulary].

        Keys and values are written to the blocks. A text's logits do not depend on what runs beside it.
        """
        counts = [len(part.tokens) for part in targets]
        size, most = program_size(sum(counts)), self.max_sequences
        lengths = [part.source.length for part in targets]
        feeds = {
            "tokens": packing.filled([part.tokens for part in targets], size),
            "positions": packing.filled([part.positions for part in targets], size),
            "rows": packing.filled([np.cumsum(counts) - 1], min(size, most)),
            "slots": packing.slots(targets, size, self.block_size),
            "table": packing.table([part.blocks for part in targets], most, self.blocks_for(self.max_target)),
            "items": packing.items(counts, [part.start for part in targets], size, 1, most),
            "table.cross": packing.table(
                [part.source.blocks for part in targets], most, self.blocks_for(self.max_source)
            ),
            "items.cross": packing.items(counts, lengths, size, 1, most),
        }
        used = self._decoder.signature.inputs
        feeds = {name: array for name, array in feeds.items() if name in used}
        logits: np.ndarray = self._decoder.run({**feeds, **self._decoder_pools, **self._cross_pools})[
            "logits"
        ]
        return logits[: len(targets)]
