"""Scalar functions: what one element of an output is, from one element of each input.

Each is an ONNX operator of that name; its keyword arguments are the operator's attributes with their
defaults. `Expression` composes them.
"""

from educe.compiler.kernels import scalars_activation, scalars_arithmetic, scalars_logic, scalars_quantization
from educe.compiler.kernels.expression import SCALARS, Expression, Scalar, Step, apply, scalar

THEMES = (scalars_activation, scalars_arithmetic, scalars_logic, scalars_quantization)
"""The modules that define them."""

__all__ = ["SCALARS", "THEMES", "Expression", "Scalar", "Step", "apply", "scalar"]
