"""What a frozen model is: its graph and weights, its signature, its card."""

from educe.model.card import Card, CardOrigin
from educe.model.model import Model
from educe.model.signature import (
    Dim,
    MapType,
    OptionalType,
    SequenceType,
    Signature,
    TensorType,
    ValueType,
)

__all__ = [
    "Card",
    "CardOrigin",
    "Dim",
    "MapType",
    "Model",
    "OptionalType",
    "SequenceType",
    "Signature",
    "TensorType",
    "ValueType",
]
