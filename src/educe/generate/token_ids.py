"""`TokenIds`: which tokens a model reads, which of them it may write, and which end a text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from educe.errors import InputError, UserError
from educe.generate.configuration import Configuration
from educe.model.checkpoint import Checkpoint
from educe.text.tokenizer import Tokenizer


class TokenIds:
    """The ids of a model's tokens.

    A model often has more ids than its tokenizer has tokens: tables are padded to round sizes, and
    vocabularies have gaps. Such an id is read and scored like any other, as in transformers; it spells
    nothing, and is never written.

    Args:
        checkpoint: The model.
        tokenizer: What spells its tokens.

    Attributes:
        count: How many ids there are, from 0 on; as many rows as the model's tables have, and logits.
        ends: The ids of which each ends a text, by the tokenizer or by the model's configuration.
        num_written: One more than the largest id that a text may get.
        gaps: The ids below it that no text gets, ascending, i64[n].

    Raises:
        ModelFileError: the configuration names an id that the model lacks.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
        config = Configuration(checkpoint.config, checkpoint.path, "config.json")
        generation = Configuration(checkpoint.generation, checkpoint.path, "generation_config.json")
        self.count = config.integer("vocab_size")
        named = [said.token_ids("eos_token_id", self.count) for said in (config, generation)]
        self.ends = frozenset(index for index in tokenizer.eos if index < self.count).union(*named)
        is_written = np.zeros(self.count, np.bool_)
        is_written[tokenizer.ids[tokenizer.ids < self.count]] = True
        is_written[[*self.ends]] = True
        self.num_written = 1 + int(np.flatnonzero(is_written)[-1])
        self.gaps = np.flatnonzero(~is_written[: self.num_written])

    def check(self, ids: Iterable[int], place: str, error: type[UserError] = InputError) -> None:
        """Check that what a caller gives are ids of the model.

        Raises:
            UserError: one of `ids` is not; of the class `error`.
        """
        wrong = next((index for index in ids if not 0 <= index < self.count), None)
        if wrong is not None:
            raise error(
                f"token {wrong:,} is none of the model's",
                place=place,
                remedy=f"give ids from 0 to {self.count - 1:,}",
            )
