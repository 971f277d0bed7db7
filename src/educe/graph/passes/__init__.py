"""Passes: each makes a graph simpler, or names what a group of its nodes computes; the meaning stays."""

from educe.graph.passes.base import Pass
from educe.graph.passes.functions import expand_functions, inline_functions

__all__ = ["Pass", "expand_functions", "inline_functions"]
