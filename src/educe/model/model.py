"""`Model`: a frozen model, loaded and verified, with nothing compiled yet."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from educe.model.card import TENSOR_CARD, Card, CardOrigin
from educe.model.cost import estimate_flops
from educe.model.digest import Digest
from educe.model.signature import Signature
from educe.model.walk import all_nodes, all_weights, operator_name

if TYPE_CHECKING:
    import onnx_ir as ir

NO_CARD = CardOrigin(source="none")


@dataclass(frozen=True, eq=False)
class Model:
    """A graph with its weights, its signature and its card, not yet runnable.

    A model is never modified after it was loaded; a graph pass returns another one. It may be shared
    between threads.

    Attributes:
        graph: The ONNX graph. Read it, do not write it.
        signature: Names, element types and shapes of inputs and outputs.
        name: The card's name, else the file's.
        path: The file it came from, if any.
        digest: The hash of the file's bytes, and of its external data after them.
        size_bytes: Size of the file and its external data.
        file_opsets: The operator sets that the file declares, by domain.
        card: Its task, preprocessing and postprocessing.
        card_origin: Where the card came from.
        notes: What was noticed while loading that a user should know.
    """

    graph: ir.Model
    signature: Signature
    name: str
    path: Path | None
    digest: Digest
    size_bytes: int
    file_opsets: dict[str, int]
    card: Card = TENSOR_CARD
    card_origin: CardOrigin = NO_CARD
    notes: tuple[str, ...] = ()

    @cached_property
    def operators(self) -> Counter[str]:
        """How many nodes there are of each operator, subgraphs and functions included."""
        return Counter(operator_name(node) for node in all_nodes(self.graph))

    @cached_property
    def num_parameters(self) -> int:
        """Number of elements in all weights: initializers and constants."""
        return sum(tensor.size for tensor in all_weights(self.graph))

    @cached_property
    def flops(self) -> int | None:
        """Estimated floating-point operations of one run, unknown sizes taken as 1; None if unknown."""
        return estimate_flops(self.graph)

    @property
    def sha256(self) -> str:
        """The digest as hexadecimal digits."""
        return self.digest.hexdigest()

    @property
    def opsets(self) -> dict[str, int]:
        """The operator sets of the graph, by domain; the standard one is ``ai.onnx``."""
        return {domain or "ai.onnx": version for domain, version in self.graph.opset_imports.items()}

    def with_card(self, card: Card, origin: CardOrigin) -> Model:
        """Return this model with another card, sharing its graph."""
        return dataclasses.replace(self, card=card, card_origin=origin, name=card.name or self.name)

    def __repr__(self) -> str:
        return f"<Model {self.name} {self.signature} sha256:{self.sha256[:12]}>"
