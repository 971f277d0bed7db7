"""The bounds on hostile input: every reader in Educe takes a `Limits` and stays within it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from educe.errors import LimitError

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Limits:
    """How much of a stranger's file is read before Educe refuses it.

    Attributes:
        model_bytes: Largest model file, without its external data. 2 GiB is protobuf's own bound.
        external_bytes: Largest sum of a model's external data, or of the weight files of a checkpoint.
        header_bytes: Largest description of the weights in a file, or in an index of files.
        grammar_bytes: Largest JSON schema, regular expression or grammar that a text has to follow.
        grammar_depth: Deepest nesting of such a schema.
        grammar_rules: Most lines of such a grammar, names in a schema, or texts to choose from.
        num_nodes: Most nodes in a model, subgraphs and functions included.
        graph_depth: Deepest nesting of subgraphs, and longest chain of function calls.
        card_bytes: Largest card, label or JSON file beside a model.
        image_bytes: Largest picture file.
        image_pixels: Most pixels in a picture or video frame, checked before decoding.
        audio_seconds: Longest sound.
        table_bytes: Largest table file.
        row_bytes: Largest single row of a table.
        cell_bytes: Largest single cell of a table; Python's csv module itself stops at 128 KiB.
        text_bytes: Largest text; of a file of lines, the longest line.
        tokenizer_bytes: Largest tokenizer file beside a model.
        tensor_bytes: Largest sum of the tensors read from a file, after decompression.
    """

    model_bytes: int = 2**31 - 1
    external_bytes: int = 2**40
    header_bytes: int = 16 * 2**20
    grammar_bytes: int = 256 * 2**10
    grammar_depth: int = 64
    grammar_rules: int = 2_000
    num_nodes: int = 1_000_000
    graph_depth: int = 64
    card_bytes: int = 4 * 2**20
    image_bytes: int = 256 * 2**20
    image_pixels: int = 100_000_000
    audio_seconds: int = 6 * 3600
    table_bytes: int = 16 * 2**30
    row_bytes: int = 16 * 2**20
    cell_bytes: int = 128 * 2**10
    text_bytes: int = 16 * 2**20
    tokenizer_bytes: int = 64 * 2**20
    tensor_bytes: int = 4 * 2**30

    def check(self, name: str, found: int, *, path: str | os.PathLike[str] | None = None) -> None:
        """Raise `LimitError` if `found` is larger than the limit called `name`."""
        allowed: int = getattr(self, name)
        if found > allowed:
            unit = name.rsplit("_", 1)[-1]
            raise LimitError(
                f"{_quantity(found, unit)} found, the limit {name} is {_quantity(allowed, unit)}",
                limit=name,
                path=path,
                remedy=f"use a smaller file, or raise it: educe.Limits({name}={found})",
            )

    def raised(self, **changes: int) -> Limits:
        """Return a copy with the limits named in `changes` replaced."""
        return dataclasses.replace(self, **changes)


DEFAULT_LIMITS = Limits()


def format_bytes(size_bytes: int | float) -> str:
    """Return `size_bytes` with a binary unit, such as ``13.3 MiB``."""
    size = float(size_bytes)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def _quantity(amount: int, unit: str) -> str:
    return format_bytes(amount) if unit == "bytes" else f"{amount:,} {unit}"
