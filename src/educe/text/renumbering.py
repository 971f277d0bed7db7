"""`Renumbered`: a tokenizer whose tokens have other numbers in the model than in its own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Cut:
    """A text as ids."""

    ids: list[int]


class Renumbered:
    """Cuts as another tokenizer does, and gives the model's ids; it has as much of its methods as is asked.

    Args:
        core: What cuts.
        ids: The model's id of each token.
        unknown: The id of what the model does not know.
    """

    def __init__(self, core: tokenizers.Tokenizer, ids: Mapping[str, int], unknown: int) -> None:
        self._core = core
        self._ids = dict(ids)
        self._tokens = {index: token for token, index in ids.items()}
        known = core.get_vocab(with_added_tokens=True)
        self._numbers = {own: ids.get(token, unknown) for token, own in known.items()}

    def encode(self, text: str, add_special_tokens: bool) -> Cut:
        """Return the ids of a text."""
        found = self._core.encode(text, add_special_tokens=add_special_tokens).ids
        return Cut([self._numbers[own] for own in found])

    def id_to_token(self, index: int) -> str | None:
        """Return the token of an id, if there is one."""
        return self._tokens.get(index)

    def get_added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Return the tokens that are found in a text before it is cut, by their ids."""
        added = self._core.get_added_tokens_decoder().values()
        return {self._ids[token.content]: token for token in added if token.content in self._ids}
