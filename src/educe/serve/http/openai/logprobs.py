"""Log-probabilities in the forms of chats and of completions."""

from __future__ import annotations

from collections.abc import Iterable

from educe.generate.sampling import Choice
from educe.serve.http.openai.chat_types import ChatLogprobs, TokenLogprob, TopLogprob
from educe.serve.http.openai.completion_types import CompletionLogprobs
from educe.text.tokenizer import Tokenizer


def of_chat(choices: Iterable[Choice], tokenizer: Tokenizer, num_top: int) -> ChatLogprobs:
    """Return the tokens of a text as chats have them, each with so many likely ones in its place."""
    return ChatLogprobs([_token(choice, tokenizer, num_top) for choice in choices])


def of_completion(
    choices: Iterable[Choice | int], tokenizer: Tokenizer, num_top: int, offset: int
) -> CompletionLogprobs:
    """Return the tokens of a text as completions have them.

    Args:
        choices: The tokens; one without a log-probability as its number.
        tokenizer: What spells them.
        num_top: How many likely ones come with each.
        offset: How many characters stand before them.
    """
    found = CompletionLogprobs([], [], [], [])
    for choice in choices:
        token = choice if isinstance(choice, int) else choice.token
        text = _text(tokenizer.token_bytes(token))
        found.tokens.append(text)
        found.text_offset.append(offset)
        offset += len(text)
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
