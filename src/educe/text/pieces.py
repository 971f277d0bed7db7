"""What a token stands for: the bytes that it adds to a text, in each of the field's spellings."""

from __future__ import annotations

import re
from collections.abc import Callable

Spelling = Callable[[str], bytes]
"""From a token as the vocabulary writes it to the bytes that it adds to a text."""

WORD_START = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of GPT-2's alphabet, which writes bytes as printable characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + rank): byte for rank, byte in enumerate(others)
    }


BYTES = _byte_letters()
"""The byte of each letter, in the order of the ids that GPT-2 gives them."""


def byte_level(token: str) -> bytes:
    """Return the bytes of a token of GPT-2's kind."""
    try:
        return bytes(BYTES[letter] for letter in token)
    except KeyError:
        return token.encode()


def sentencepiece(token: str) -> bytes:
    """Return the bytes of one of SentencePiece's tokens: ``▁`` is a space, ``<0x0A>`` a byte."""
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace(WORD_START, " ").encode()


def word_piece(token: str) -> bytes:
    """Return the bytes of a word piece: ``##`` continues a word, anything else begins one."""
    return token[2:].encode() if token.startswith("##") else b" " + token.encode()


def word(token: str) -> bytes:
    """Return the bytes of a token that is a whole word."""
    return b" " + token.encode()


def character(token: str) -> bytes:
    """Return the bytes of a token that is a character."""
    return token.encode()


def word_end(suffix: str) -> Spelling:
    """Return the spelling in which `suffix` marks what ends a word."""

    def spelled(token: str) -> bytes:
        return (
            f"{token.removesuffix(suffix)} " if suffix and token.endswith(suffix) else token
        ).encode()  # fmt: skip

    return spelled
