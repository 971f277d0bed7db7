"""How the numbers of a weight are written as bytes, and how they are read back as f32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Encoding:
    """One way to write numbers: blocks of some bytes that hold some elements.

    Attributes:
        block_elements: Elements of one block; it lies within one row of a weight.
        block_bytes: Bytes of one block.
        decode: From the bytes of n blocks, u8[n · block_bytes], their elements, f32[n · block_elements];
            a view where nothing is to be computed.
    """

    block_elements: int
    block_bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


def _plain(dtype: np.dtype | type) -> Encoding:
    """Return the encoding of numbers that NumPy knows by themselves."""
    return Encoding(1, np.dtype(dtype).itemsize, lambda data: data.view(dtype).astype(np.float32, copy=False))


ENCODINGS: dict[str, Encoding] = {
    "F64": _plain(np.float64),
    "F32": _plain(np.float32),
    "F16": _plain(np.float16),
    "BF16": _plain(ml_dtypes.bfloat16),
    "F8_E4M3": _plain(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": _plain(ml_dtypes.float8_e5m2),
    "I64": _plain(np.int64),
    "I32": _plain(np.int32),
    "I16": _plain(np.int16),
    "I8": _plain(np.int8),
    "U64": _plain(np.uint64),
    "U32": _plain(np.uint32),
    "U16": _plain(np.uint16),
    "U8": _plain(np.uint8),
    "BOOL": _plain(np.bool_),
}
"""Every encoding by its name in safetensors or GGUF."""
