"""`RecurrentEncoderDecoder`: one recurrent network reads, another one begins with its state and writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from educe.generate.architectures.recurrent import lstm_decoder, lstm_encoder
from educe.generate.blocks import Copy
from educe.generate.cache import block_bytes, copy_blocks, pools
from educe.generate.configuration import Configuration
from educe.generate.encoder_decoder import Target
from educe.generate.parameters import Progress
from educe.generate.recurrent import Recurrence
from educe.model.checkpoint import Checkpoint

_F32 = np.dtype(np.float32)


class RecurrentEncoderDecoder:
    """A recurrent model that reads and writes, in place of an `EncoderDecoder`. One thread at a time.

    A source's block holds the state after it, a text's the state after all that was written.

    Args:
        checkpoint: The model, of the type ``lstm_translation``.
        max_length: Most tokens of a text.
        max_sequences: Most sources, and most texts, in a step.
        precision: ``f32``; ``auto`` is the same.
        threads: Threads of a step; the machine's cores if absent.
        progress: Is told nothing: no weights are packed.

    Raises:
        ModelFileError: weights are missing or misshapen, or a field of the configuration cannot be.
        UnsupportedModelError: weights are left over.
        OptionError: another precision.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        max_length: int = 1024,
        max_sequences: int = 32,
        precision: str = "f32",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        config = Configuration(checkpoint.config, checkpoint.path)
        # The token without a letter, with which sources were filled up in training.
        self._padding = config.integer("vocab_size")
        self.max_source = config.integer("max_source_length")
        self.max_target, self.max_sequences = max_length, max_sequences
        self.block_size = max(self.max_source, max_length) + 1
        self._encoder = Recurrence(lstm_encoder, checkpoint, precision, threads)
        self._decoder = Recurrence(lstm_decoder, checkpoint, precision, threads)
        self._read: dict[str, np.ndarray] = {}
        self._written: dict[str, np.ndarray] = {}

    @property
    def source_block_bytes(self) -> int:
        """Memory of the state after a source."""
        return block_bytes(self._decoder.layouts, _F32)

    @property
    def target_block_bytes(self) -> int:
        """Memory of the state after a text."""
        return block_bytes(self._decoder.layouts, _F32)

    def allocate(self, num_source_blocks: int, num_target_blocks: int) -> None:
        """Give the caches of sources and of texts so many blocks; one takes memory when it is first used."""
        self._read, self._written = (
            pools(self._decoder.layouts, count, _F32) for count in (num_source_blocks, num_target_blocks)
        )

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks so many tokens take: one."""
        return -(-num_tokens // self.block_size)

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy blocks of texts, from and to, in their order."""
        copy_blocks(self._written, copies)

    def encode(self, tokens: Sequence[Sequence[int]], blocks: Sequence[Sequence[int]]) -> None:
        """Read sources, and keep the state after each in its block."""
        rows = [[*each, *[self._padding] * (self.max_source - len(each))] for each in tokens]
        after = self._encoder.read(rows).values()
        for pool, states in zip(self._read.values(), after, strict=True):
            pool[[own[0] for own in blocks]] = states

    def decode(self, targets: Sequence[Target]) -> np.ndarray:
        """Run tokens of texts, and return the logits after the last of each, f32[texts, vocabulary].

        A text's logits do not depend on what runs beside it.
        """
        blocks = [part.blocks[0] for part in targets]
        begins = [(row, part.source.blocks[0]) for row, part in enumerate(targets) if part.start == 0]
        states = {name: pool[blocks] for name, pool in self._written.items()}
        for row, source in begins:
            for name, pool in self._read.items():
                states[name][row] = pool[source]
        logits, after = self._decoder.run([part.tokens for part in targets], [1] * len(targets), states)
        for name, pool in self._written.items():
            pool[blocks] = after[name]
        return logits
