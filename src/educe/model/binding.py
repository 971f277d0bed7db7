"""`Binding`: the weights of a checkpoint, as an architecture takes them one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from educe.errors import ModelFileError, UnsupportedModelError
from educe.model.checkpoint import Checkpoint, Weight

_MOST_NAMED = 5
_MOST_FAULTS = 256


class Binding:
    """The weights of a checkpoint under declaration: all of them are taken, in their shapes, and no others.

    What is missing or misshapen is noted where it is taken, and `finish` names all of it at once.

    Args:
        checkpoint: The checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model_type, self._path = checkpoint.model_type, checkpoint.path
        self._weights, self._ignored = checkpoint.weights, "(?!)"
        self._parts: dict[str, Weight | None] = {}
        self._used: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._parts or name in self._weights

    def take(self, name: str, shape: Sequence[int]) -> Weight | None:
        """Return the weight of this name and shape; None, and noted, if there is none such.

        Raises:
            ModelFileError: so many weights are wrong that looking for more is idle.
        """
        if name in self._parts:
            return self._of_shape(self._parts[name], shape)
        self._used.add(name)
        found = self._weights.get(name)
        if found is None:
            self._missing.append(name)
        if len(self._missing) + len(self._misshapen) > _MOST_FAULTS:
            self._refuse_wrong()
        return self._of_shape(found, shape)

    def cut(
        self,
        name: str,
        shape: Sequence[int],
        parts: Mapping[str, int],
        *,
        order: np.ndarray | None = None,
        bias: bool = False,
    ) -> None:
        """Let the rows of ``name.weight`` stand as weights of their own, and those of ``name.bias``.

        Args:
            name: The layer whose weight is cut.
            shape: The weight's shape.
            parts: How many rows each part has, by the parts' names in their order.
            order: The rows in the order in which they are cut, if not in their own.
            bias: Whether the layer has a bias.
        """
        for kind, sizes in {"weight": shape, "bias": shape[:1]}.items() if bias else [("weight", shape)]:
            whole, start = self.take(f"{name}.{kind}", sizes), 0
            if whole is not None:
                whole = whole.plain() if kind == "bias" else whole
                whole = whole if order is None else whole.taken(order)
            for part, rows in parts.items():
                cut = None if whole is None else whole.cut(start, start + rows, f"{part}.{kind}")
                self._parts[f"{part}.{kind}"] = cut
                start += rows

    def transpose(self, name: str, shape: Sequence[int]) -> None:
        """Let the transpose of a matrix of `shape` stand in its place."""
        whole = self.take(name, shape)
        self._parts[name] = None if whole is None else whole.transposed()

    def ignore(self, pattern: str) -> None:
        """Let weights be left over whose whole names match a regular expression."""
        self._ignored = f"{self._ignored}|{pattern}"

    def finish(self) -> None:
        """Raise unless exactly the weights of the checkpoint were taken, in their shapes.

        Raises:
            ModelFileError: weights are missing or have another shape.
            UnsupportedModelError: weights are left over, so that the architecture is not this one.
        """
        self._refuse_wrong()
        left = (name for name in self._weights if name not in self._used)
        if listed := _listed(name for name in left if not re.fullmatch(self._ignored, name)):
            raise UnsupportedModelError(
                f"has weights that the architecture {self._model_type!r} does not use: {listed}",
                path=self._path,
                remedy="check model_type in its configuration; answers without these weights would be wrong",
            )

    def _of_shape(self, weight: Weight | None, shape: Sequence[int]) -> Weight | None:
        if weight is None or weight.shape == tuple(shape):
            return weight
        self._misshapen.append(f"{weight.name} is {list(weight.shape)}, not {list(shape)}")
        return None

    def _refuse_wrong(self) -> None:
        if listed := _listed(self._missing):
            raise ModelFileError(
                f"lacks weights that the architecture {self._model_type!r} has: {listed}",
                path=self._path,
                remedy="download the model again, all its weight files and its configuration",
            )
        if listed := _listed(self._misshapen):
            raise ModelFileError(
                f"has weights of other shapes than its configuration says: {listed}",
                path=self._path,
                remedy="use the configuration that came with the weights",
            )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(set(names))
    hidden = len(ordered) - _MOST_NAMED
    return ", ".join(ordered[:_MOST_NAMED]) + (f" and {hidden:,} more" if hidden > 0 else "")
