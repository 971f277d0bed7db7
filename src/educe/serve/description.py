"""`Description`: what a version of a model is, known as long as it is in service, loaded or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from educe.generate.generator import Generator
from educe.model import TensorType, ValueType
from educe.serve import text_tensors
from educe.serve.served import PredictorModel, Served


@dataclass(frozen=True)
class Description:
    """What a version of a model is.

    Attributes:
        name: The model's name.
        version: The version.
        kind: What it is, such as ``predictor`` or ``generator``.
        task: What it is for.
        inputs: Its inputs, by name.
        outputs: Its outputs, by name.
        title: What its card calls it; empty if it says nothing.
        columns: The columns of the table that it takes.
        chats: Whether it takes conversations.
    """

    name: str
    version: str
    kind: str
    task: str
    inputs: Mapping[str, ValueType]
    outputs: Mapping[str, ValueType]
    title: str = ""
    columns: tuple[str, ...] = ()
    chats: bool = False

    @classmethod
    def of(cls, name: str, version: str, served: Served) -> Description:
        """Return the description of a model that is loaded."""
        if isinstance(served, PredictorModel):
            card, signature = served.predictor.task.model.card, served.signature
            columns = () if card.table is None else tuple(card.table.columns)
            return cls(
                name,
                version,
                served.kind,
                served.task,
                dict(signature.inputs),
                dict(signature.outputs),
                card.name or "",
                columns,
            )
        inputs, outputs = text_tensors.kinds(served)
        tokenizer = served.model.checkpoint.tokenizer if isinstance(served.model, Generator) else None
        chats = tokenizer is not None and tokenizer.chat_template is not None
        return cls(name, version, served.kind, served.task, inputs, outputs, chats=chats)

    def takes_inputs_of(self, other: Description) -> bool:
        """Say whether who asks the other one can ask this one as well."""
        return self.kind == other.kind and _types(self.inputs) == _types(other.inputs)


def _types(inputs: Mapping[str, ValueType]) -> dict[str, object]:
    return {name: kind.dtype if isinstance(kind, TensorType) else kind for name, kind in inputs.items()}
