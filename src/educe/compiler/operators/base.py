"""What an operator is to the compiler: a function that lowers its node to launches."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from educe.compiler import operators as package
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@dataclass(frozen=True, eq=False)
class Call:
    """One node of the graph, as lowering reads it.

    Attributes:
        operator: The operator's name.
        domain: Its domain; empty for the standard one.
        version: The operator set it comes from.
        attributes: The attributes that the node has, as numbers, text, lists and NumPy arrays.
        inputs: Names of its inputs; empty where one is left out.
        outputs: Names of its outputs; empty where one is not wanted.
        label: The node's name, for messages.
    """

    operator: str
    domain: str
    version: int
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    label: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or `default` where the node has none of that name."""
        return self.attributes.get(name, default)

    def axis(self, rank: int, default: int = 0, name: str = "axis") -> int:
        """Return the attribute `name` as an axis from 0 on.

        Raises:
            ValueError: a tensor of `rank` has no such axis.
        """
        return positive_axis(int(self.get(name, default)), rank)


def positive_axis(axis: int, rank: int) -> int:
    """Return `axis` counted from 0; `ValueError` if a tensor of `rank` has none such."""
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} is not one of a tensor of {rank} dimensions")
    return axis + rank if axis < 0 else axis


class NotCompiled(Exception):  # noqa: N818
    """Raised by an operator's function for a case that kernels do not cover: it runs on the host."""


class NeedsValue(Exception):  # noqa: N818
    """Raised where lowering needs the content of tensors that only the run will know.

    Args:
        tensors: They; inputs of the node, or tensors of `kept`.
        kept: Tensors that the node has launched already. It finds them as `Lowering.kept` when it is lowered
            again, those of `tensors` among them with their content.
    """

    def __init__(self, *tensors: Tensor, kept: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.tensors = tensors
        self.kept = dict(kept or {})


Result: TypeAlias = "Tensor | Sequence[Tensor | None]"
LowerFunction: TypeAlias = Callable[..., Result]

_OPERATORS: dict[tuple[str, str], LowerFunction] = {}


def operator(*names: str, domain: str = "") -> Callable[[LowerFunction], LowerFunction]:
    """Register ``lower(low, call, *tensors)`` for the operators `names` of `domain`.

    It is given a tensor for each input, or None where the node leaves one out, and returns the outputs.
    It may raise `NotCompiled`, `NeedsValue`, and ValueError for what the operator's definition forbids.
    """

    def register(lower: LowerFunction) -> LowerFunction:
        for name in names:
            assert (domain, name) not in _OPERATORS, name
            _OPERATORS[domain, name] = lower
        return lower

    return register


@cache
def operators() -> dict[tuple[str, str], LowerFunction]:
    """Return the function of every operator that is compiled, by domain and name."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _OPERATORS


def known_values(low: Lowering, *tensors: Tensor | None) -> list[np.ndarray | None]:
    """Return the content of `tensors`, None for those left out; `NeedsValue` where it is not known."""
    missing = [each for each in tensors if each is not None and each.value is None]
    if missing:
        raise NeedsValue(*missing)
    return [None if each is None else each.value for each in tensors]
