"""A `Model` to a better `Model` with the same meaning."""

from educe.graph.normalize import INTERNAL_OPSET, normalize

__all__ = ["INTERNAL_OPSET", "normalize"]
