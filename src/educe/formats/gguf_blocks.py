"""The encodings that GGUF adds to `ENCODINGS`: blocks of quantised numbers that share scales.

The layouts are those of ggml's ``block_*`` structures. Every decoder multiplies and adds in 32-bit floats
in the order of the ``gguf`` package's own, so that the values have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from educe import pages
from educe.model.encodings import ENCODINGS, Encoding

_Decoder = Callable[[np.ndarray], np.ndarray]

NAMES: dict[int, str] = {
    0: "F32",
    1: "F16",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}
"""The encodings that Educe decodes, by their numbers in a file; each is in `ENCODINGS`."""

_CHUNK_ELEMENTS = 1 << 17
"""Decoded at a time: temporary arrays stay in the cache."""


def _blocks(code: int, name: str, num_elements: int, size_bytes: int) -> Callable[[_Decoder], _Decoder]:
    """Make the decorated function, from u8[n, size_bytes] to f32[n, num_elements], an encoding."""

    def register(decode: _Decoder) -> _Decoder:
        NAMES[code] = name
        ENCODINGS[name] = Encoding(num_elements, size_bytes, _in_chunks(decode, num_elements, size_bytes))
        return decode

    return register


def _in_chunks(decode: _Decoder, num_elements: int, size_bytes: int) -> _Decoder:
    def decode_all(data: np.ndarray) -> np.ndarray:
        blocks = data.reshape(-1, size_bytes)
        values = pages.empty((len(blocks), num_elements), np.float32)
        step = _CHUNK_ELEMENTS // num_elements
        with np.errstate(all="ignore"):
            for start in range(0, len(blocks), step):
                values[start : start + step] = decode(blocks[start : start + step])
        return values.reshape(-1)

    return decode_all


def _split(blocks: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Return the parts of every block, of `sizes` bytes each."""
    ends = np.cumsum(sizes)
    return [np.ascontiguousarray(blocks[:, end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _half(part: np.ndarray) -> np.ndarray:
    values: np.ndarray = part.view("<f2").astype(np.float32)
    return values


def _fields(packed: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Return the fields of `bits` bits in each run of `width` bytes: the lowest of all, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(-1, 1)
    fields: np.ndarray = packed.reshape(len(packed), -1, 1, width) >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _joined(low: np.ndarray, high: np.ndarray, shift: int) -> np.ndarray:
    """Return the numbers of which `low` has the first bits and `high` those from `shift` on."""
    numbers: np.ndarray = low | high << np.uint8(shift)
    return numbers


def _scaled(scales: np.ndarray, numbers: np.ndarray, offsets: np.ndarray | None = None) -> np.ndarray:
    """Return scale · number + offset, where a scale and an offset are those of a run of numbers."""
    values: np.ndarray = scales[..., np.newaxis] * numbers.astype(np.float32).reshape(*scales.shape, -1)
    if offsets is not None:
        values += offsets[..., np.newaxis]
    return values.reshape(len(scales), -1)


@_blocks(2, "Q4_0", 32, 18)
def _q4_0(blocks: np.ndarray) -> np.ndarray:
    scale, low = _split(blocks, 2, 16)
    return _scaled(_half(scale), _fields(low, 4, 16).view(np.int8) - np.int8(8))


@_blocks(3, "Q4_1", 32, 20)
def _q4_1(blocks: np.ndarray) -> np.ndarray:
    scale, minimum, low = _split(blocks, 2, 2, 16)
    return _scaled(_half(scale), _fields(low, 4, 16), _half(minimum))


def _five_bits(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return _joined(_fields(low, 4, 16), _fields(high, 1, 1), 4)


@_blocks(6, "Q5_0", 32, 22)
def _q5_0(blocks: np.ndarray) -> np.ndarray:
    scale, high, low = _split(blocks, 2, 4, 16)
    return _scaled(_half(scale), _five_bits(low, high).view(np.int8) - np.int8(16))


@_blocks(7, "Q5_1", 32, 24)
def _q5_1(blocks: np.ndarray) -> np.ndarray:
    scale, minimum, high, low = _split(blocks, 2, 2, 4, 16)
    return _scaled(_half(scale), _five_bits(low, high), _half(minimum))


@_blocks(8, "Q8_0", 32, 34)
def _q8_0(blocks: np.ndarray) -> np.ndarray:
    scale, numbers = _split(blocks, 2, 32)
    return _scaled(_half(scale), numbers.view(np.int8))


@_blocks(10, "Q2_K", 256, 84)
def _q2_k(blocks: np.ndarray) -> np.ndarray:
    packed, low, scale, minimum = _split(blocks, 16, 64, 2, 2)
    scales = _half(scale) * (packed & 15).astype(np.float32)
    minimums = _half(minimum) * (packed >> 4).astype(np.float32)
    return _scaled(scales, _fields(low, 2, 32), -minimums)


@_blocks(11, "Q3_K", 256, 110)
def _q3_k(blocks: np.ndarray) -> np.ndarray:
    high, low, packed, scale = _split(blocks, 32, 64, 12, 2)
    scales = _joined(_fields(packed[:, :8], 4, 8), _fields(packed[:, 8:], 2, 4), 4).view(np.int8)
    numbers = _joined(_fields(low, 2, 32), _fields(high, 1, 32), 2).view(np.int8)
    return _scaled(_half(scale) * (scales - np.int8(32)).astype(np.float32), numbers - np.int8(4))


def _scales_and_minimums(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eight scales and eight minimums of 6 bits that lie in 12 bytes.

    The first four of each are whole in the low bits of bytes 0-3 and 4-7; of the last four, bits 0-3 are in
    bytes 8-11 and bits 4-5 are the high bits of the others.
    """
    first, second, nibbles = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([first & 63, nibbles & 15 | first >> 6 << 4])
    minimums = np.hstack([second & 63, nibbles >> 4 | second >> 6 << 4])
    return scales.astype(np.float32), minimums.astype(np.float32)


@_blocks(12, "Q4_K", 256, 144)
def _q4_k(blocks: np.ndarray) -> np.ndarray:
    scale, minimum, packed, low = _split(blocks, 2, 2, 12, 128)
    scales, minimums = _scales_and_minimums(packed)
    return _scaled(_half(scale) * scales, _fields(low, 4, 32), -(_half(minimum) * minimums))


@_blocks(13, "Q5_K", 256, 176)
def _q5_k(blocks: np.ndarray) -> np.ndarray:
    scale, minimum, packed, high, low = _split(blocks, 2, 2, 12, 32, 128)
    scales, minimums = _scales_and_minimums(packed)
    numbers = _joined(_fields(low, 4, 32), _fields(high, 1, 32), 4)
    return _scaled(_half(scale) * scales, numbers, -(_half(minimum) * minimums))


@_blocks(14, "Q6_K", 256, 210)
def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low, high, scales, scale = _split(blocks, 128, 64, 16, 2)
    numbers = _joined(_fields(low, 4, 64), _fields(high, 2, 32), 4).view(np.int8) - np.int8(32)
    return _scaled(_half(scale) * scales.view(np.int8).astype(np.float32), numbers)


_NONLINEAR = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int8)
_TWICE_E2M1 = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.int8)


@_blocks(20, "IQ4_NL", 32, 18)
def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    scale, low = _split(blocks, 2, 16)
    return _scaled(_half(scale), _NONLINEAR[_fields(low, 4, 16)])


@_blocks(23, "IQ4_XS", 256, 136)
def _iq4_xs(blocks: np.ndarray) -> np.ndarray:
    scale, high, low, numbers = _split(blocks, 2, 2, 4, 128)
    scales = _joined(_fields(low, 4, 1), _fields(high, 2, 1), 4).view(np.int8) - np.int8(32)
    return _scaled(_half(scale) * scales.astype(np.float32), _NONLINEAR[_fields(numbers, 4, 16)])


@_blocks(39, "MXFP4", 32, 17)
def _mxfp4(blocks: np.ndarray) -> np.ndarray:
    exponent, low = _split(blocks, 1, 16)
    # Half of 2 to the power of the exponent minus 127; below 2 that is a subnormal number.
    bits = exponent.astype(np.uint32)
    halves = np.where(bits < 2, np.uint32(0x00200000) << bits, (bits - 1) << 23).view(np.float32)
    return _scaled(halves, _TWICE_E2M1[_fields(low, 4, 16)])
