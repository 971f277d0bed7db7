"""`PromptLookup`: a guess at the tokens to come, from what stood after the same tokens before.

Prompt lookup decoding (Saxena, 2023): text that quotes its prompt, or repeats itself, is guessed without a
model. The places of all n-grams are kept in tables, so that a guess costs the same however long the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# Knuth's multiplier (The Art of Computer Programming, volume 2, 3.3.4): 64-bit hashes of n-grams.
_MULTIPLIER = 6364136223846793005
_MASK = 2**64 - 1


class PromptIndex:
    """Where the n-grams of a prompt stand: made at once, and for all texts about it.

    It takes 12 bytes for each token and size. N-grams whose hashes are equal are taken for the same, at the
    price of a wrong guess.

    Args:
        tokens: The prompt.
        max_ngram: The most tokens of an n-gram.
        min_ngram: The fewest.

    Attributes:
        num_tokens: Tokens of the prompt.
        sizes: The sizes of n-grams, the largest first.
    """

    def __init__(self, tokens: Sequence[int], max_ngram: int = 4, min_ngram: int = 2) -> None:
        assert 1 <= min_ngram <= max_ngram
        self.num_tokens = len(tokens)
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        ids = np.array(tokens, np.uint64)
        self._tables = {size: _table(ids, size) for size in self.sizes}

    def find(self, ngram: Sequence[int]) -> int | None:
        """Return the position after the last time that an n-gram stands in the prompt, but at its end."""
        hashes, positions = self._tables[len(ngram)]
        wanted = np.uint64(_hash(ngram))
        place = int(np.searchsorted(hashes, wanted))
        return int(positions[place]) if place < len(hashes) and hashes[place] == wanted else None


def _hash(ngram: Iterable[int]) -> int:
    found = 0
    for token in ngram:
        found = (found * _MULTIPLIER + token) & _MASK
    return found


def _table(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the n-grams that a token follows, u64[n] ascending, and the last place of each."""
    count = max(0, len(ids) - size)
    hashes = np.zeros(count, np.uint64)
    for place in range(size):
        hashes = hashes * np.uint64(_MULTIPLIER) + ids[place : place + count]
    # Of equals, the first of the reversed is the last.
    distinct, places = np.unique(hashes[::-1], return_index=True)
    return distinct, (len(ids) - 1 - places).astype(np.int32)


class PromptLookup:
    """The guesses for one sequence, longer while they hold and shorter while they do not.

    Args:
        prompt: The n-grams of its prompt; what is written is indexed as it comes.
        max_draft: Most tokens of a guess.
    """

    def __init__(self, prompt: PromptIndex, max_draft: int = 16) -> None:
        assert max_draft >= 1
        self._prompt, self._sizes = prompt, prompt.sizes
        self._max_draft = max_draft
        self._length = min(4, max_draft)
        self._draft: list[int] = []
        self._num_seen = prompt.num_tokens
        # The position after each n-gram that ends after the prompt and before the last token.
        self._after: dict[tuple[int, ...], int] = {}

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Return a guess, maybe empty, at what follows `tokens`: the prompt, and what has been written."""
        self._learn_from(tokens[self._num_seen :])
        self._index(tokens)
        self._draft = self._continue(tokens)
        return list(self._draft)

    def _learn_from(self, came: Sequence[int]) -> None:
        agree = [guess == token for guess, token in zip(self._draft, came, strict=False)]
        if not all(agree):
            self._length = min(agree.index(False) + 1, self._length)
        elif agree and len(agree) == len(self._draft):
            self._length = min(2 * self._length, self._max_draft)

    def _index(self, tokens: Sequence[int]) -> None:
        for end in range(max(1, self._num_seen), len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._after[tuple(tokens[end - size : end])] = end
        self._num_seen = len(tokens)

    def _continue(self, tokens: Sequence[int]) -> list[int]:
        for size in self._sizes:
            ngram = tuple(tokens[-size:])
            if len(ngram) < size:
                continue
            position = self._after.get(ngram)
            position = self._prompt.find(ngram) if position is None else position
            if position is not None:
                return self._copy(tokens, position)
        return []

    def _copy(self, tokens: Sequence[int], position: int) -> list[int]:
        """Copy from `position` on; what goes beyond the end repeats the copy."""
        draft: list[int] = []
        for place in range(position, position + self._length):
            draft.append(tokens[place] if place < len(tokens) else draft[place - len(tokens)])
        return draft
