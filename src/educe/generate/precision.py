"""Precisions: how the weights of a language model are held, by the names that users give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from educe.errors import OptionError
from educe.generate.quantization import INT4, INT8, Q8_0, Format, own_format
from educe.model.checkpoint import Weight
from educe.model.encodings import ENCODINGS

AUTO, F32, BF16 = "auto", "f32", "bf16"
_FORMATS = {AUTO: INT8, "int8": INT8, "int4": INT4}

PRECISIONS = (AUTO, F32, BF16, "int8", "int4")
"""The precisions.

- ``f32``: weights and products in 32-bit floats.
- ``bf16``: matrices in bfloat16, but those of experts; what they multiply and products are rounded to it.
- ``int8``: matrices of 8-bit codes, or fewer bits where the file has fewer, with a scale for each output.
- ``int4``: matrices of 4-bit codes, with a scale for each output and a multiplier for each 32 inputs.
- ``auto``: matrices as the file has them if it is of a quantised kind that kernels read (GGUF's Q4_0, Q4_1
  and Q8_0, CTranslate2's int8), in 8 bits for groups of 32 if it is of another quantised kind, else ``int8``.

``int8``, ``int4`` and ``auto`` round the inputs of products to 8 bits, row by row. Norms, biases and
attention are f32 in all.
"""

ROUNDED = "matrices are rounded to 8 bits; the precision f32 keeps them as they are"
ROUNDED_AGAIN = "matrices that the file has in other quantised kinds are rounded again"


def check(precision: str) -> None:
    """Raise OptionError unless there is a precision of this name."""
    if precision not in PRECISIONS:
        raise OptionError(
            f"unknown precision {precision!r}", place="precision", remedy=f"known: {', '.join(PRECISIONS)}"
        )


def format_of(weight: Weight, precision: str) -> Format | None:
    """Return the format that a matrix is held in; None for those in floats."""
    if precision in (F32, BF16):
        return None
    own, wanted = own_format(weight), _FORMATS[precision]
    if own is not None and (precision == AUTO or own.bits <= wanted.bits):
        return own
    if precision == AUTO and _is_quantized(weight):
        return Q8_0
    return wanted


def notes(weights: Iterable[Weight], precision: str) -> tuple[str, ...]:
    """Say which matrices are rounded without being asked: those in floats, and of a quantised file again."""
    again: Counter[str] = Counter()
    found: tuple[str, ...] = ()
    for weight in weights:
        form = format_of(weight, precision)
        if form is not None and _is_quantized(weight) and form != own_format(weight):
            again[weight.encoding] += 1
        elif form is not None and precision == AUTO and not _is_quantized(weight):
            found = (ROUNDED,)
    if not again:
        return found
    listed = ", ".join(f"{count:,} of {encoding}" for encoding, count in sorted(again.items()))
    return (*found, f"{ROUNDED_AGAIN}: {listed}")


def _is_quantized(weight: Weight) -> bool:
    return ENCODINGS[weight.encoding].block_elements > 1 or weight.scales is not None
