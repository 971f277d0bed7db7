"""`RecurrentTranslator`: a recurrent network reads a sentence, and another one writes its translation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from educe.errors import InputError, ModelFileError
from educe.generate.architectures.recurrent import RecurrentGraph, lstm_decoder, lstm_encoder
from educe.generate.configuration import Configuration
from educe.generate.recurrent import Recurrence
from educe.generate.tokenizer import Tokenizer
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint

MODEL_TYPE = "lstm_translation"
_BATCH = 32


class RecurrentTranslator:
    """A translator, ready to run. It is used by one thread at a time.

    It takes the likeliest letter after each. A translation does not depend on what is translated beside it.

    Args:
        checkpoint: The model, of the type ``lstm_translation``.
        threads: Threads of a step; the machine's cores if absent.
        limits: The bounds on texts.

    Attributes:
        max_source_length: Most tokens of a sentence.

    Raises:
        ModelFileError: weights or tables are missing or misshapen, or a field of the configuration cannot be.
        UnsupportedModelError: weights are left over.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, threads: int | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        files = checkpoint.tokenizer
        if files is None or files.source is None or files.target is None:
            raise ModelFileError(
                "has no tables of characters of two languages",
                path=checkpoint.path,
                remedy="use the files that came with the model",
            )
        self._source = Tokenizer.from_vocabulary(files.source, limits)
        self._target = Tokenizer.from_vocabulary(files.target, limits)
        config = Configuration({**checkpoint.config, **checkpoint.generation}, checkpoint.path)
        # The token without a letter, with which sentences were filled up in training.
        self._padding = config.integer("vocab_size")
        self.max_source_length = config.integer("max_source_length")
        self._start = config.integer("decoder_start_token_id", least=0)
        self._end = config.integer("eos_token_id", least=0)
        self._max_length = config.integer("max_length")
        self._encoder, self._decoder = (
            _network(build, checkpoint, config, threads) for build in (lstm_encoder, lstm_decoder)
        )

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Return the translations of sentences, in their order.

        Raises:
            InputError: a sentence is empty or too long, or has a character that the model does not know.
            LimitError: it is larger than `limits.text_bytes`.
        """
        sources = [self._tokens(text) for text in texts]
        return [
            self._target.decode(ids)
            for first in range(0, len(sources), _BATCH)
            for ids in self._written(sources[first : first + _BATCH])
        ]

    def _tokens(self, text: str) -> list[int]:
        ids = self._source.encode(text)
        if not 1 <= len(ids) <= self.max_source_length:
            raise InputError(
                f"expected 1 to {self.max_source_length} characters, found {len(ids):,}",
                place="text",
                remedy="give one short sentence; nothing is cut without being asked",
            )
        return ids

    def _written(self, sources: Sequence[list[int]]) -> list[list[int]]:
        """Return the tokens of translations, without those that begin and end them."""
        states = self._read(sources)
        written: list[list[int]] = [[] for _ in sources]
        last, going = [self._start] * len(sources), list(range(len(sources)))
        while going:
            logits, states = self._decoder.run([[token] for token in last], [1] * len(last), states)
            last = [int(token) for token in logits.argmax(axis=1)]
            for number, token in zip(going, last, strict=True):
                written[number].append(token)
            kept = [
                row for row, number in enumerate(going)
                if last[row] != self._end and len(written[number]) < self._max_length
            ]  # fmt: skip
            states = {name: state[kept] for name, state in states.items()}
            last, going = [last[row] for row in kept], [going[row] for row in kept]
        return [ids[:-1] if ids[-1] == self._end else ids for ids in written]

    def _read(self, sources: Sequence[list[int]]) -> dict[str, np.ndarray]:
        """Return the states with which the translations of sentences begin."""
        rows = [ids + [self._padding] * (self.max_source_length - len(ids)) for ids in sources]
        blank = {
            name: np.zeros((len(rows), 1, size), np.float32) for name, size in self._encoder.states.items()
        }
        found = self._encoder.read(rows, blank).values()
        return dict(zip(self._decoder.states, found, strict=True))


def _network(
    build: Callable[[RecurrentGraph, Configuration], ir.Model],
    checkpoint: Checkpoint,
    config: Configuration,
    threads: int | None,
) -> Recurrence:
    step = RecurrentGraph(checkpoint)
    return Recurrence(step, build(step, config), checkpoint, threads)
