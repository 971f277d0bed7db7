"""Operators of single elements: they stay expressions until something needs their result in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from educe.compiler.kernels.scalars import SCALARS
from educe.compiler.operators.base import Call, operator
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


def _elementwise(low: Lowering, call: Call, *inputs: Tensor) -> Tensor:
    defaults = SCALARS[call.operator].attributes
    attributes = {name: call.get(name, default) for name, default in defaults.items()}
    return low.apply(call.operator, *inputs, **attributes)


# Those whose inputs or attributes are not simply the scalar function's have a function of their own below.
_OWN = {"Cast", "Clip", "Identity"}
operator(*(name for name in SCALARS if name not in _OWN and name[0].isupper()))(_elementwise)


@operator("Identity")
def identity(low: Lowering, call: Call, x: Tensor) -> Tensor:
    """The same tensor."""
    return x
