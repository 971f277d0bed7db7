"""Log-probabilities in the forms of chats and of completions."""

from __future__ import annotations

from collections.abc import Iterable

from educe.generate.sampling import Choice
from educe.serve.http.openai.chat_types import ChatLogprobs, TokenLogprob, TopLogprob
from educe.serve.http.openai.completion_types import CompletionLogprobs
from educe.text.tokenizer import Decoder, Tokenizer

# As JSON, with the bytes of its token.
_LOGPROB_BYTES = 64


def size_bytes(choices: Iterable[Choice | int]) -> int:
    """Return about how large the log-probabilities of some tokens are in an answer."""
    return _LOGPROB_BYTES * sum(1 if isinstance(choice, int) else 1 + len(choice.top) for choice in choices)


def of_chat(choices: Iterable[Choice], tokenizer: Tokenizer, num_top: int) -> ChatLogprobs:
    """Return the tokens of a text as chats have them, each with so many likely ones in its place."""
    return ChatLogprobs([_token(choice, tokenizer, num_top) for choice in choices])


class Places:
    """Where the tokens of a text stand in it: such as it has no words of take no room.

    Args:
        decoder: What spells the text.
        start: How many characters stand before it.
    """

    def __init__(self, decoder: Decoder, start: int) -> None:
        self._decoder, self._end = decoder, start

    def of(self, token: int) -> int:
        """Return where the next token begins; within a character where that does."""
        start = self._end
        self._end += len(self._decoder.push(token))
        return start


def of_completion(
    choices: Iterable[Choice | int], tokenizer: Tokenizer, num_top: int, places: Places
) -> CompletionLogprobs:
    """Return the tokens of a text as completions have them.

    Args:
        choices: The tokens; one without a log-probability as its number.
        tokenizer: What spells them.
        num_top: How many likely ones come with each.
        places: Where they stand in the text.
    """
    found = CompletionLogprobs([], [], [], [])
    for choice in choices:
        token = choice if isinstance(choice, int) else choice.token
        found.tokens.append(_text(tokenizer.token_bytes(token)))
        found.text_offset.append(places.of(token))
        if isinstance(choice, int):
            found.token_logprobs.append(None)
            found.top_logprobs.append(None)
            continue
        top: dict[str, float] = {}
        for other, logprob in choice.top[:num_top]:
            top.setdefault(_text(tokenizer.token_bytes(other)), logprob)
        found.token_logprobs.append(choice.logprob)
        found.top_logprobs.append(top)
    return found


def _token(choice: Choice, tokenizer: Tokenizer, num_top: int) -> TokenLogprob:
    spelled = tokenizer.token_bytes(choice.token)
    top = [
        TopLogprob(_text(content), logprob, list(content))
        for content, logprob in (
            (tokenizer.token_bytes(token), value) for token, value in choice.top[:num_top]
        )
    ]
    return TokenLogprob(_text(spelled), choice.logprob or 0.0, list(spelled), top)


def _text(spelled: bytes) -> str:
    return spelled.decode("utf-8", "replace")
