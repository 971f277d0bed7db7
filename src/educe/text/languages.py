"""`Languages`: how a translator is told which language it reads, and which it writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from educe.errors import OptionError, nearest
from educe.text.tokenizer import Tokenizer

# The languages' tokens of M2M-100, of Marian, and of mBART and NLLB.
_TOKEN = re.compile(r"__(?P<m2m>\w{2,4})__|>>(?P<marian>[^<>]+)<<|(?P<code>[a-z]{2,3}_[A-Z]\w{1,3})")


@dataclass(frozen=True)
class Direction:
    """What a direction of translation is to a model.

    Attributes:
        prefix: What is said before a text.
        before: The tokens before those of the text.
        forced: The token that a translation begins with, if the direction decides it.
    """

    prefix: str = ""
    before: tuple[int, ...] = ()
    forced: int | None = None


class Languages:
    """The languages that a model is told of, by tokens of its vocabulary or by words before a text.

    Args:
        tokenizer: The tokenizer of the language read.
        config: The model's configuration; T5 names its prefixes there.
    """

    def __init__(self, tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
        self._tokens: dict[str, int] = {}
        self._marks_source = False
        for index in sorted(tokenizer.special):
            found = _TOKEN.fullmatch(tokenizer.token_bytes(index).decode())
            if found:
                self._tokens[found[found.lastgroup or 0]] = index
                self._marks_source |= found.lastgroup != "marian"
        self._prefixes = _prefixes(config)

    @property
    def codes(self) -> list[str]:
        """The codes of the languages; empty if the model knows one direction, and is not told."""
        return sorted({*self._tokens, *(code for pair in self._prefixes for code in pair)})

    def direction(self, source: str | None, target: str | None) -> Direction:
        """Return what the model is told to translate from one language to another.

        Raises:
            OptionError: a code is missing, not known, or the model is not told of any.
        """
        if self._tokens and self._marks_source:
            return Direction(before=(self._token("source", source),), forced=self._token("target", target))
        if self._tokens:
            return Direction(before=(self._token("target", target),))
        if source is None and target is None:
            return Direction()
        for place, code in (("source", source), ("target", target)):
            self._check(place, code, self.codes)
        if (source, target) not in self._prefixes:
            pairs = ", ".join(f"{a} to {b}" for a, b in sorted(self._prefixes))
            raise OptionError(
                f"from {source} to {target} is not known", place="target", remedy=f"known: {pairs}"
            )
        return Direction(prefix=self._prefixes[source or "", target or ""])

    def _token(self, place: str, code: str | None) -> int:
        self._check(place, code, self.codes)
        return self._tokens[code or ""]

    def _check(self, place: str, code: str | None, known: list[str]) -> None:
        if not known:
            raise OptionError("the model knows one direction", place=place, remedy="leave out the languages")
        if code not in known:
            cause = "the language is missing" if code is None else f"the language {code!r} is not known"
            raise OptionError(cause, place=place, remedy=nearest(code or "", known))


def _prefixes(config: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return the words before texts of each pair of languages, as T5's configuration has them."""
    tasks = config.get("task_specific_params")
    found: dict[tuple[str, str], str] = {}
    for name, task in tasks.items() if isinstance(tasks, Mapping) else ():
        pair = re.fullmatch(r"translation_(\w+)_to_(\w+)", str(name))
        if pair and isinstance(task, Mapping) and isinstance(task.get("prefix"), str):
            found[pair[1], pair[2]] = task["prefix"]
    return found
