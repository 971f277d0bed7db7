"""Texts of language models on screen: followed while they are written, summed up, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from educe.cli.loading import model_fields
from educe.cli.screen import counted, errors, format_seconds, printable
from educe.generate.generator import Generator
from educe.generate.sampling import Choice
from educe.generate.stream import Completion, Piece, Stream
from educe.text.tokenizer import Tokenizer


def follow(stream: Stream, take: Callable[[Piece], object]) -> Completion:
    """Hand the pieces of a stream on, and return what they become; an interrupt ends the text early."""
    try:
        for piece in stream:
            take(piece)
    except KeyboardInterrupt:
        stream.cancel()
        for piece in stream:
            take(piece)
    return stream.result()


def write_text(text: str) -> None:
    """Write a part of a text on standard output, at once; what could drive a terminal is replaced."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def print_summary(completion: Completion) -> None:
    """Print on standard error how much was read and written, how fast, and why it ended."""
    errors().print(f"[dim]{summary(completion)}[/]")


def summary(completion: Completion) -> str:
    """Return how much was read and written, and how fast, in one line."""
    seconds = completion.seconds
    num_read = completion.num_prompt_tokens - completion.num_cached_tokens
    cached = f", {completion.num_cached_tokens:,} cached" if completion.num_cached_tokens else ""
    # The first token of each text comes with the prompt.
    num_after = completion.num_tokens - len(completion.outputs)
    read, written = (counted(n, "token") for n in (completion.num_prompt_tokens, completion.num_tokens))
    reasons = ", ".join(dict.fromkeys(output.finish_reason for output in completion.outputs))
    return (
        f"prompt {read}{cached}"
        f"{_rate(num_read, seconds.first_token - seconds.start)}; "
        f"text {written}{_rate(num_after, seconds.total - seconds.first_token)}; "
        f"first after {format_seconds(seconds.first_token)}; {reasons}"
    )


def _rate(count: int, seconds: float) -> str:
    return f", {count / seconds:,.1f}/s" if count > 0 and seconds > 0 else ""


def completion_fields(generator: Generator, completion: Completion) -> dict[str, Any]:
    """Return a completion as JSON shows it; fields that do not apply are absent."""
    outputs = [
        {
            "text": output.text,
            "finish_reason": output.finish_reason,
            "num_tokens": len(output.tokens),
            **({"stop": output.stop} if output.stop else {}),
            **({"tool_calls": [asdict(call) for call in output.tool_calls]} if output.tool_calls else {}),
            **({"logprobs": token_fields(generator.tokenizer, output.logprobs)} if output.logprobs else {}),
        }
        for output in completion.outputs
    ]
    return {
        "outputs": outputs,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_cached_tokens": completion.num_cached_tokens,
        "model": model_fields(generator),
        "seconds": {name: round(seconds, 6) for name, seconds in asdict(completion.seconds).items()},
    }


def token_fields(tokenizer: Tokenizer, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
    """Return tokens with their log-probabilities, and those of the likeliest in their places."""
    return [
        {
            "token": choice.token,
            "text": token_text(tokenizer, choice.token),
            "logprob": choice.logprob,
            "top": [
                {"token": token, "text": token_text(tokenizer, token), "logprob": logprob}
                for token, logprob in choice.top
            ],
        }
        for choice in choices
    ]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return what a token adds to a text; bytes that are no character become U+FFFD."""
    return tokenizer.token_bytes(token).decode(errors="replace")
