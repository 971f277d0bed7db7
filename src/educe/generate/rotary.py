"""`Rotary`: the angles by which positions turn queries and keys (Su et al., 2021, arxiv:2104.09864)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from educe.errors import UnsupportedModelError


class Rotary:
    """The angles of a model, by its configuration.

    Args:
        config: The fields `rope_theta` and `rope_scaling` of Hugging Face's configurations; of the scalings
            ``linear`` and ``llama3`` are known.
        features: Features of a head that are turned.

    Raises:
        UnsupportedModelError: the scaling is another one.
    """

    def __init__(self, config: Mapping[str, Any], features: int) -> None:
        theta = float(config.get("rope_theta", 10000.0))
        exponents = np.arange(0, features, 2, dtype=np.float32) / np.float32(features)
        frequencies = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
        scaling = config.get("rope_scaling") or {}
        kind = str(scaling.get("rope_type", scaling.get("type", "default")))
        if kind == "linear":
            frequencies = frequencies / np.float32(scaling["factor"])
        elif kind == "llama3":
            frequencies = _llama3(frequencies, scaling)
        elif kind != "default":
            raise UnsupportedModelError(f"positions scaled by {kind!r} are not run yet")
        self.frequencies: np.ndarray = frequencies

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines and sines of positions i64[T], each f32[T, features / 2]."""
        angles = positions.astype(np.float32)[:, None] * self.frequencies
        return np.cos(angles), np.sin(angles)


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Slow down low frequencies, and those between by a part (Llama 3.1; arxiv.org/abs/2407.21783)."""
    factor, low, high = (float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    before = float(scaling["original_max_position_embeddings"])
    waves = 2 * math.pi / frequencies
    share = np.clip((before / waves - low) / (high - low), 0, 1)
    slowed: np.ndarray = (1 - share) * frequencies / factor + share * frequencies
    return slowed.astype(np.float32)
