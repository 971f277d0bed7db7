"""`PromptLookup`: a guess at the tokens to come, from what stood after the same tokens before.

Prompt lookup decoding (Saxena, 2023): text that quotes its prompt, or repeats itself, is guessed without a
model. The places of all n-grams are kept in a table, so that a guess costs the same however long the text.
"""

from __future__ import annotations

from collections.abc import Sequence


class PromptLookup:
    """The guesses for one sequence, longer while they hold and shorter while they do not.

    Args:
        max_ngram: How many last tokens are looked for at first.
        min_ngram: How many at the least.
        max_draft: Most tokens of a guess.
    """

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2, max_draft: int = 16) -> None:
        assert 1 <= min_ngram <= max_ngram
        assert max_draft >= 1
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._max_draft = max_draft
        self._length = min(4, max_draft)
        self._draft: list[int] = []
        self._num_seen = 0
        # The position after each n-gram that ends before the last token; the latest counts.
        self._after: dict[tuple[int, ...], int] = {}

    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Return a guess, maybe empty, at what follows `tokens`, which continue those of the last call."""
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
            position = self._after.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if position is not None:
                return self._copy(tokens, position)
        return []

    def _copy(self, tokens: Sequence[int], position: int) -> list[int]:
        """Copy from `position` on; what goes beyond the end repeats the copy."""
        draft: list[int] = []
        for place in range(position, position + self._length):
            draft.append(tokens[place] if place < len(tokens) else draft[place - len(tokens)])
        return draft
