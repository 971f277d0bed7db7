"""Text generation beside llama.cpp: prompts read, one stream, many streams, cached prompts, quotes.

The models have the shapes of published ones and random weights, so that only speed can be told from them.
Both engines take turns in one process, on all cores; the fastest and the median of the rounds are printed in
tokens a second, and the ratios of ours to theirs. llama.cpp is measured at its own interface, without the
choice of tokens; ours as a user has it, with everything.

Run by ``python -m benchmarks.generation MODEL --gguf FILE --precision int4``; `benchmarks.language_models`
makes both. llama.cpp comes with ``pip install llama-cpp-python``, built on the machine; without it ours is
measured alone. GCC 12 compiles its use of a matrix unit wrongly (it crashes); Clang does not: ``CC=clang``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import educe
from educe.bench.peaks import measure_peaks
from educe.settings import resolve_threads

PROMPT, STREAMS, WRITTEN = 512, 16, 48
# Threads of an engine may spin for a while after their work.
_REST_SECONDS = 0.5


class Ours:
    """Educe, as its users have it."""

    def __init__(self, folder: Path, precision: str, context: int) -> None:
        self.generator = educe.generator(
            folder, precision=precision, context=context, max_sequences=STREAMS, lookup=False
        )
        self.generator.prepare()
        self._rng = np.random.default_rng(0)

    def tokens(self, count: int) -> list[int]:
        """Return a prompt that was never seen before."""
        return self._rng.integers(1000, 30000, count).tolist()

    def prefill(self) -> float:
        """Return the seconds to the first token of a prompt."""
        return self.generator.generate(self.tokens(PROMPT), max_tokens=1).seconds.total

    def decode(self, streams: int) -> float:
        """Return the seconds that one more token of each stream takes, on average."""
        options = {"max_tokens": WRITTEN, "ignore_eos": True, "temperature": 0.0}
        running = [self.generator.stream(self.tokens(16), **options) for _ in range(streams)]
        done = [stream.result().seconds for stream in running]
        start = max(seconds.first_token for seconds in done)
        return (max(seconds.total for seconds in done) - start) / (WRITTEN - 1)

    def quoting(self, lookup: bool) -> float:
        """Return the seconds a token of a text of which four fifths are quotes from its prompt.

        Random weights quote nothing, so that the text is forced; it costs what one that is chosen costs.
        """
        prompt = self.tokens(PROMPT)
        parts = [prompt[start : start + 40] + self.tokens(10) for start in (30, 120, 210, 300, 390)]
        text = [token for part in parts for token in part]
        order = self.generator._orders.read(prompt, max_tokens=len(text), ignore_eos=True)
        order.states[0].constraint = Forced(text)
        completion = self.generator._engine.write(order, lookup=lookup).result()
        assert list(completion.tokens) == text
        return (completion.seconds.total - completion.seconds.first_token) / (len(text) - 1)

    def cached(self) -> float:
        """Return the share of the time to the first token that is left where 90 % of a prompt is cached."""
        whole = self.tokens(PROMPT)
        first = self.generator.generate(whole, max_tokens=1).seconds.total
        rest = whole[: PROMPT * 9 // 10] + self.tokens(PROMPT - PROMPT * 9 // 10)
        return self.generator.generate(rest, max_tokens=1).seconds.total / first


class Forced:
    """A constraint that leaves one text."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens, self._place = tokens, 0

    def mask(self) -> np.ndarray:
        """Return the bit of the next token alone."""
        bits = np.zeros(1 << 15, np.uint8)
        token = self._tokens[self._place]
        bits[token // 8] = 1 << token % 8
        return bits

    def advance(self, token: int) -> None:
        """Take the next token."""
        self._place = min(self._place + 1, len(self._tokens) - 1)


class LlamaCpp:
    """llama.cpp, at its own interface."""

    def __init__(self, path: Path, context: int) -> None:
        import llama_cpp as llama

        self._llama = llama
        llama.llama_backend_init()
        threads = resolve_threads(None)
        self._model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context * STREAMS, 512, 512
        options.n_seq_max, options.kv_unified = STREAMS, True
        options.n_threads = options.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, options)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(512, 0, STREAMS)
        self._rng = np.random.default_rng(1)

    def _run(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run tokens, each with its position, its stream, and whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, stream, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, stream
            batch.logits[index] = wanted
        assert self._llama.llama_decode(self._context, batch) == 0
        self._llama.llama_get_logits(self._context)

    def prefill(self) -> float:
        """Return the seconds that a prompt takes."""
        self._llama.llama_memory_clear(self._memory, True)
        tokens = self._rng.integers(1000, 30000, PROMPT).tolist()
        begin = time.perf_counter()
        self._run([(token, place, 0, place == PROMPT - 1) for place, token in enumerate(tokens)])
        return time.perf_counter() - begin

    def decode(self, streams: int) -> float:
        """Return the seconds that one more token of each stream takes, on average."""
        self._llama.llama_memory_clear(self._memory, True)
        self._run([(1000 + place, place, stream, False) for stream in range(streams) for place in range(16)])
        begin = time.perf_counter()
        for place in range(16, 16 + WRITTEN - 1):
            self._run([(2000 + place, place, stream, True) for stream in range(streams)])
        return (time.perf_counter() - begin) / (WRITTEN - 1)


def compare(
    name: str, tokens: int, ours: Callable[[], float], theirs: Callable[[], float] | None, rounds: int
) -> None:
    """Print tokens a second of both, which take turns."""
    ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for each, run in zip(times, (ours, theirs), strict=True):
            time.sleep(_REST_SECONDS)
            if run is not None:
                each.append(run())
    line = f"{name:24}{_rates(tokens, times[0])}"
    if theirs is not None:
        best, middle = (how(times[1]) / how(times[0]) for how in (min, statistics.median))
        line += f"{_rates(tokens, times[1])}{best:8.2f} ({middle:.2f})"
    print(line, flush=True)


def _rates(tokens: int, seconds: Sequence[float]) -> str:
    return f"{tokens / min(seconds):10.1f} ({tokens / statistics.median(seconds):.1f})"


def main() -> None:
    """Print a line for each measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024)
    given = parser.parse_args()
    ours = Ours(given.folder, given.precision, given.context)
    theirs = LlamaCpp(given.gguf, given.context) if given.gguf else None
    print(f"{given.folder.name}, {given.precision}: tokens/s of educe, llama.cpp, ratio; best (median)")
    compare("prefill of 512", PROMPT, ours.prefill, theirs and theirs.prefill, given.rounds)
    for streams in (1, STREAMS):
        their_decode = partial(theirs.decode, streams) if theirs else None
        compare(f"{streams} streams", streams, partial(ours.decode, streams), their_decode, given.rounds)
    shares = [ours.cached() for _ in range(given.rounds)]
    print(f"first token, 90 % cached: {min(shares):.1%} ({statistics.median(shares):.1%}) of the uncached")
    plain, quick = (min(ours.quoting(lookup) for _ in range(given.rounds)) for lookup in (False, True))
    print(f"a text with quotes, by lookup of its prompt: {plain / quick:.2f} times as fast")
    print(f"memory is read at {measure_peaks().read_gigabytes_per_second:.1f} GB/s")


if __name__ == "__main__":
    main()
