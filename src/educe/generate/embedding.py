"""`Embedder`: texts to vectors whose angles tell how alike they are in meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from educe.errors import InputError, ModelFileError, OptionError, UserError, refuse_unknown
from educe.formats.sentence_transformers import read_pooling
from educe.generate import packing
from educe.generate.architectures.bert import encoder
from educe.generate.architectures.encoder import EncoderGraph
from educe.generate.cache import CacheFormat, pools
from educe.generate.closing import Closing
from educe.generate.compiled import compiled
from educe.generate.configuration import Configuration
from educe.generate.options import check_number
from educe.generate.packing import program_size
from educe.generate.parameters import Progress
from educe.generate.step import Slice
from educe.generate.texts import isolated, listed, placed
from educe.limits import DEFAULT_LIMITS, Limits
from educe.model.checkpoint import Checkpoint
from educe.text.tokenizer import Tokenizer

_BLOCK = 32
_MOST_BATCH_TOKENS = 1 << 20


class Embedder(Closing):
    """An encoder of texts, ready to run until it is closed. It is used by one thread at a time.

    What is made of an encoder's rows is what the folder's modules say, as Sentence Transformers has them; the
    mean of all tokens where there are none.

    Args:
        checkpoint: The encoder.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        threads: Threads of a run; the machine's cores if absent.
        batch_tokens: How many tokens run at once; a longer text runs by itself.
        progress: What is told of the packing of weights.
        limits: The bounds on texts and files.

    Attributes:
        checkpoint: The model.
        dimensions: Elements of a vector.
        max_tokens: Most tokens of a text, those that begin and end it included.

    Raises:
        ModelFileError: a file is missing or broken, or there is no tokenizer.
        UnsupportedModelError: the encoder, or what is made of its rows, is of a kind that is not known.
        OptionError: `batch_tokens` is less than 1.
    """

    _held = ("_executable", "_pools")

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "f32",
        threads: int | None = None,
        batch_tokens: int = 512,
        progress: Progress | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_number("batch_tokens", batch_tokens, 1, _MOST_BATCH_TOKENS, True)
        if checkpoint.tokenizer is None:
            raise ModelFileError(
                "has no tokenizer",
                path=checkpoint.path,
                remedy="download tokenizer.json into the folder",
            )
        self.checkpoint = checkpoint
        pooling = read_pooling(checkpoint.path, limits)
        config = Configuration(checkpoint.config, checkpoint.path)
        cache = CacheFormat("f32", _BLOCK)
        graph = EncoderGraph(checkpoint, cache, precision, progress=progress)
        encoded = encoder(checkpoint.model_type)(graph, config)
        vectors = graph.pooled(encoded.states, pooling.how)
        model = graph.finish(graph.normalized(vectors) if pooling.normalized else vectors, "vectors")
        self.max_tokens = min(encoded.max_length, pooling.max_tokens or encoded.max_length)
        self.dimensions = encoded.hidden
        self._tokenizer = Tokenizer.from_files(checkpoint.tokenizer, limits)
        self._executable = compiled(model, checkpoint, threads)
        self._max_blocks = -(-self.max_tokens // _BLOCK)
        self._batch_tokens = max(batch_tokens, self.max_tokens)
        self._num_blocks = 2 * -(-self._batch_tokens // _BLOCK)
        self._pools = pools(cache.shapes(graph.caches), self._num_blocks, cache.dtype)

    def embed(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        progress: Callable[[int, int], object] = lambda done, total: None,
        **unknown: Any,
    ) -> np.ndarray:
        """Return the vectors of texts, f32[texts, dimensions], in their order.

        A vector does not depend on the other texts; but a text that is too long costs all, unless it is cut:
        see `batch`.

        Args:
            texts: Any texts.
            truncate: Whether a text of more than `max_tokens` is cut; else it is an error.
            progress: Called with how many texts are done, of how many.

        Raises:
            InputError: `texts` is a single text; or one is too long, or is no text: its place says which.
            OptionError: an option is unknown, or has a value that it does not take; or it is closed.
        """
        refuse_unknown("option", unknown, ("truncate", "progress"))
        texts, ids = listed(texts), []
        for number, text in enumerate(texts):
            with placed(number, len(texts)):
                ids.append(self.tokens(text, truncate=truncate))
        return self.embed_tokens(ids, progress=progress)

    def batch(self, texts: Sequence[str], **options: Any) -> list[np.ndarray | UserError]:
        """Return the vector of each text, f32[dimensions], in their order; or the error of one that has none.

        Args:
            texts: As those of `embed`.
            **options: Those of `embed`.

        Raises:
            InputError: `texts` is a single text.
            OptionError: an option is unknown, or has a value that it does not take.
        """
        return isolated(lambda part: self.embed(part, **options), texts)

    def embed_tokens(
        self,
        ids: Sequence[Sequence[int]],
        *,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> np.ndarray:
        """Return the vectors of texts that `tokens` has cut; see `embed`."""
        self._check_open()
        vectors = np.empty((len(ids), self.dimensions), np.float32)
        for first, last in self._batches(ids):
            vectors[first:last] = self._run(ids[first:last])
            progress(last, len(ids))
        return vectors

    def tokens(self, text: str, *, truncate: bool = False) -> list[int]:
        """Return the tokens of a text; see `embed`."""
        if not isinstance(truncate, bool):
            raise OptionError(f"is {truncate!r}; it has to be True or False", place="truncate")
        ids = self._tokenizer.encode(text)
        if len(ids) <= self.max_tokens:
            return ids
        if not truncate:
            raise InputError(
                f"the text {text[:40]!r}... has {len(ids):,} tokens, and the model reads {self.max_tokens:,}",
                too_long=True,
                remedy="give a shorter text, or have it cut: truncate=True",
            )
        num_last = (len(self._tokenizer.encode("")) + 1) // 2
        return [*ids[: self.max_tokens - num_last], *ids[len(ids) - num_last :]]

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        """Yield the first and the last text of each run, as many as it has room for."""
        first = tokens = blocks = 0
        for number, each in enumerate(ids):
            more = -(-len(each) // _BLOCK)
            if number > first and (
                tokens + len(each) > self._batch_tokens or blocks + more > self._num_blocks
            ):
                yield first, number
                first, tokens, blocks = number, 0, 0
            tokens, blocks = tokens + len(each), blocks + more
        if ids:
            yield first, len(ids)

    def _run(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        counts = [len(each) for each in ids]
        ends = np.cumsum([-(-count // _BLOCK) for count in counts])
        blocks = np.split(np.arange(ends[-1]), ends[:-1])
        slices = [Slice(each, 0, own.tolist()) for each, own in zip(ids, blocks, strict=True)]
        size, most = program_size(sum(counts)), program_size(len(ids))
        segments = np.zeros((most, 2), np.int64)
        segments[: len(ids)] = np.transpose([np.cumsum(counts) - counts, counts])
        feeds = {
            "tokens": packing.filled(ids, size),
            "positions": packing.filled([range(count) for count in counts], size),
            "slots": packing.slots(slices, size, _BLOCK),
            "table": packing.table([part.blocks for part in slices], most, self._max_blocks),
            "items": packing.items(counts, counts, size, 1, most),
            "segments": segments,
        }
        vectors: np.ndarray = self._executable.run({**feeds, **self._pools})["vectors"]
        return vectors[: len(ids)]
