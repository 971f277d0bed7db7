"""Whether requests to a model can share a run: whether its first axis counts things that it treats alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from educe.engines.base import Executable
from educe.errors import EduceError
from educe.model import TensorType

_TRIALS = 2
_UNKNOWN_SIZE = 8
# Few models take larger numbers as indices of words and the like.
_MOST_INTEGER = 4


def rows_are_independent(executable: Executable) -> bool:
    """Say whether a run of two requests' rows gives what two runs give: bit by bit in Educe's own engine.

    That all first axes have one unknown size is only a hint: in a model of sequences it may count words that
    see each other. So it is tried, with random rows.
    """
    kinds = executable.signature.inputs
    if not kinds or not _share_an_axis(executable):
        return False
    random = np.random.default_rng(0)
    try:
        for _ in range(_TRIALS):
            parts = [{name: _random(kind, rows, random) for name, kind in kinds.items()} for rows in (1, 2)]
            whole = executable.run(joined(parts))
            alone = joined([executable.run(part) for part in parts])
            if not all(_same(whole[name], alone[name], executable.engine) for name in whole):
                return False
    except (EduceError, ValueError):
        return False
    return True


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the rows of all `parts`, one part after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _share_an_axis(executable: Executable) -> bool:
    signature = executable.signature
    kinds = [*signature.inputs.values(), *signature.outputs.values()]
    if any(not isinstance(kind, TensorType) or not kind.shape or kind.dtype == "str" for kind in kinds):
        return False
    first = {kind.shape[0] for kind in kinds if isinstance(kind, TensorType) and kind.shape}
    return not any(isinstance(dim, int) for dim in first) and len(first - {None}) <= 1


def _random(kind: object, rows: int, random: np.random.Generator) -> np.ndarray:
    assert isinstance(kind, TensorType)
    assert kind.shape
    shape = [rows, *(dim if isinstance(dim, int) else _UNKNOWN_SIZE for dim in kind.shape[1:])]
    if kind.numpy_dtype.kind in "iu":
        return random.integers(0, _MOST_INTEGER, shape).astype(kind.numpy_dtype)
    return random.normal(size=shape).astype(kind.numpy_dtype)


def _same(left: np.ndarray, right: np.ndarray, engine: str) -> bool:
    if left.shape != right.shape:
        return False
    if engine == "native":
        return left.tobytes() == right.tobytes()
    return bool(np.allclose(left.astype(np.float64), right.astype(np.float64), rtol=1e-3, atol=1e-5))
