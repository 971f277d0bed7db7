"""`Sequence`: one text in the making, and where it stands.

    waiting ──admitted──▶ running ──▶ finished(stop, length, cancelled, failed)
       ▲                     │
       └─────preempted───────┘        a waiting sequence may also end as cancelled or failed

The scheduler alone changes a sequence; what others may do is to propose a `draft`, and to ask for an end.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Tokens
from enum import Enum
from typing import Literal

from educe.errors import InputError, OptionError
from educe.generate.blocks import BlockTable

_MOST_TOKENS = 2**31

FinishReason = Literal["stop", "length", "cancelled", "failed"]


class State(Enum):
    """Whether a sequence has blocks, will have some, or needs none any more."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A prompt, what has been written after it, and how far the model has read both.

    Two sequences are equal only if they are one and the same.

    Args:
        prompt: The tokens to begin with, at least one.
        max_tokens: Most tokens to write; 0 reads the prompt alone, to score it.
        stop_ids: Tokens that end the text; the one that did is part of the output.
        priority: Lower numbers go first; equals in the order of their submission.
        salt: Only sequences of one salt share what is cached: a tenant's name, the identity of an adapter.
        logits_from: The first position whose logits are wanted; the prompt's last one if absent.

    Attributes:
        tokens: Prompt and output.
        draft: A guess at the tokens to come, to be verified in the next step; dropped after it.
        arrival: The number of its submission, which no two sequences share.
        forks: Samples of the same prompt that wait until it has been read.
        table: Where its keys and values lie.
        num_computed: How many of the tokens have keys and values.
        next_logits: The first position whose logits have not been taken.
        num_preemptions: How often its blocks were taken away.
        is_cancelled: It ends with the next step, wherever it stands.

    Raises:
        InputError: the prompt is empty, or holds what cannot be a token.
        OptionError: a number is out of its range.
    """

    def __init__(
        self,
        prompt: Tokens[int],
        *,
        max_tokens: int,
        stop_ids: Collection[int] = (),
        priority: int = 0,
        salt: bytes = b"",
        logits_from: int | None = None,
    ) -> None:
        self.tokens = list(prompt)
        self.num_prompt = len(self.tokens)
        self.max_tokens = max_tokens
        self.stop_ids = frozenset(stop_ids)
        self.priority = priority
        self.salt = salt
        self.draft: Tokens[int] = ()
        self.arrival = 0
        self.forks: list[Sequence] = []
        self.table = BlockTable(salt)
        self.num_computed = 0
        self.next_logits = self.num_prompt - 1 if logits_from is None else logits_from
        self.num_preemptions = 0
        self.is_cancelled = False
        self.state = State.WAITING
        self.finish_reason: FinishReason | None = None
        self._check()

    def _check(self) -> None:
        if not self.tokens:
            raise InputError("the prompt has no tokens", remedy="give at least a token that begins a text")
        if not 0 <= min(self.tokens) <= max(self.tokens) < _MOST_TOKENS:
            cause = f"expected tokens from 0, found {min(self.tokens)} to {max(self.tokens)}"
            raise InputError(cause, place="prompt", remedy="give tokens of the model's vocabulary")
        if self.max_tokens < 0:
            raise OptionError(f"expected 0 or more, found {self.max_tokens}", place="max_tokens")
        if not 0 <= self.next_logits < self.num_prompt:
            cause = f"expected a position of the prompt, below {self.num_prompt}, found {self.next_logits}"
            raise OptionError(cause, place="logits_from")

    def sibling(self) -> Sequence:
        """Return another sample of the same prompt; the logits of the prompt are this one's to take."""
        return Sequence(
            self.tokens[: self.num_prompt],
            max_tokens=self.max_tokens,
            stop_ids=self.stop_ids,
            priority=self.priority,
            salt=self.salt,
        )

    def share_less(self, salt: bytes) -> None:
        """Let it share what is cached with those sequences alone that have been given the same here.

        Args:
            salt: As many bytes for all sequences, so that no salt of another length means the same.
        """
        self.salt = salt + self.salt
        self.table = BlockTable(self.salt)

    @property
    def span(self) -> int:
        """How many positions prompt and output may have in the end."""
        return self.num_prompt + self.max_tokens

    @property
    def output(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def rank(self) -> tuple[int, int]:
        """The place in every queue, the lowest first."""
        return self.priority, self.arrival

    @property
    def num_pending(self) -> int:
        """How many tokens the model has yet to read: 1 while it writes one after the other."""
        return len(self.tokens) - self.num_computed

    @property
    def num_remaining(self) -> int:
        """How many tokens it may still write."""
        return self.max_tokens - (len(self.tokens) - self.num_prompt)

    def append(self, tokens: Tokens[int]) -> FinishReason | None:
        """Take tokens as far as the first that ends the text, and return why it ends there, if it does."""
        for token in tokens[: self.num_remaining]:
            self.tokens.append(token)
            if token in self.stop_ids:
                return "stop"
        return None if self.num_remaining else "length"

    def __repr__(self) -> str:
        end = f" ({self.finish_reason})" if self.finish_reason else ""
        read = f"{self.num_computed} of {len(self.tokens)} tokens"
        return f"<Sequence {self.arrival}: {read}, {self.state.value}{end}>"
